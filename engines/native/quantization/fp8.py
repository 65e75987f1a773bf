"""fp8: weights in e4m3 (1 sign, 4 exponent and 3 mantissa bits, no infinity) with a scale per output channel.

On GPUs whose tensor cores multiply e4m3, products of many tokens quantize their activations too, one scale per token
(W8A8); everywhere else, and for few tokens, the weight alone is in fp8. `quantize_tokens` is the meaning of the former.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engines.native.quantization.int8 import Int8Quantizer
from engines.native.quantization.weight import Format, QuantizedWeight, row_scales

LARGEST = 448.0  # of e4m3
_SCALES_PER_OCTAVE = 8
_ROWS_AT_ONCE = 1024


def _decode(codes: Tensor) -> Tensor:
    return codes.float()


FP8 = Format("fp8", 1, 1, _decode)
"""Codes are float8_e4m3fn [N, K], a code its own value."""


class Fp8Quantizer:
    """See weight.Quantizer. Where a row's numbers fall between powers of two decides how well e4m3 meets them: its
    scale is the one, of eight in an octave, that errs least in squares (an eighth less than the smallest of them)."""

    name = "fp8"
    group_size = 0
    weighs_columns = spreads_errors = False

    def quantize(self, weight: Tensor, _moments: Tensor | None = None, /) -> QuantizedWeight:
        parts = [_quantize(rows.float()) for rows in weight.split(_ROWS_AT_ONCE)]
        codes, scales = zip(*parts, strict=True)
        return QuantizedWeight(FP8, torch.cat(codes), torch.cat(scales))

    quantize_values = quantize
    quantize_head = Int8Quantizer.quantize  # whose steps are a quarter as wide: e4m3 costs the head 2 % of perplexity


def _quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    smallest = row_scales(rows, LARGEST)
    least, best = torch.full_like(smallest, float("inf")), smallest
    for step in range(_SCALES_PER_OCTAVE):
        scales = smallest * 2 ** (step / _SCALES_PER_OCTAVE)
        error = (to_e4m3(rows / scales).float() * scales - rows).square().sum(1, keepdim=True)
        best, least = torch.where(error < least, scales, best), torch.minimum(error, least)
    return to_e4m3(rows / best), best


def to_e4m3(values: Tensor) -> Tensor:
    """Rounded to nearest even; what is too large becomes the largest, not NaN."""
    return values.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations [num_tokens, K] to (float8_e4m3fn of that shape, scales [num_tokens, 1] float32)."""
    scales = row_scales(x, LARGEST)
    return to_e4m3(x.float() / scales), scales
