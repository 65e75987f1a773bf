"""int8, weight only: signed bytes with a scale per output channel, rounded to nearest.

Also the form in which other schemes' byte codes with groups are kept (GGUF's Q8_0 and Q6_K, W8A8 checkpoints).
"""

from __future__ import annotations

import torch
from torch import Tensor

from engines.native.quantization.weight import Format, QuantizedWeight, row_scales

_LARGEST = 127.0


def _decode(codes: Tensor) -> Tensor:
    return codes.float()


INT8 = Format("int8", 1, 1, _decode)
"""Codes are int8 [N, K], a code its own value."""


class Int8Quantizer:
    """See weight.Quantizer."""

    name = "int8"
    group_size = 0
    weighs_columns = spreads_errors = False

    def quantize(self, weight: Tensor, _moments: Tensor | None = None, /) -> QuantizedWeight:
        scales = row_scales(weight, _LARGEST)
        codes = (weight.float() / scales).round_().clamp_(-_LARGEST, _LARGEST)
        return QuantizedWeight(INT8, codes.to(torch.int8), scales)

    quantize_values = quantize_head = quantize
