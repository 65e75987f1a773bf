"""nf4 and fp4, weight only: the bitsandbytes library's 4-bit formats, quantized by the library itself.

A code is an index into sixteen values, those of a normal distribution's quantiles (nf4, arXiv 2305.14314) or of a 4-bit
float (fp4), relative to the largest magnitude of 64 consecutive weights. Owns the library's layout (two codes a byte,
the earlier column in the high half) and its plain PyTorch meaning.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import warnings
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from engines.errors import EngineUnavailable
from engines.native.quantization.int8 import Int8Quantizer
from engines.native.quantization.weight import Format, QuantizedWeight

GROUP_SIZE = 64

# The library's own tables (bitsandbytes.functional.get_4bit_type), by code.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_FP4_MAGNITUDES = (0.0, 0.0625 / 12, 8 / 12, 1.0, 4 / 12, 6 / 12, 2 / 12, 3 / 12)
_FP4 = _FP4_MAGNITUDES + tuple(-magnitude for magnitude in _FP4_MAGNITUDES)


def unpack(codes: Tensor) -> Tensor:
    """uint8 [N, K / 2] to indices [N, K] int32."""
    return torch.stack([codes >> 4, codes & 15], dim=2).flatten(1).int()


def pack(indices: Tensor) -> Tensor:
    """The inverse of `unpack`."""
    pairs = indices.to(torch.uint8).unflatten(1, (-1, 2))
    return (pairs[..., 0] << 4) | pairs[..., 1]


def _decode(table: tuple[float, ...], codes: Tensor) -> Tensor:
    return torch.tensor(table, device=codes.device)[unpack(codes)]


NF4 = Format("nf4", 2, GROUP_SIZE, functools.partial(_decode, _NF4))
FP4 = Format("fp4", 2, GROUP_SIZE, functools.partial(_decode, _FP4))
FORMATS = {"nf4": NF4, "fp4": FP4}
TABLES = {"nf4": _NF4, "fp4": _FP4}


class BitsAndBytesQuantizer:
    """See weight.Quantizer. Raises EngineUnavailable where the library is not installed."""

    group_size = GROUP_SIZE

    def __init__(self, name: Literal["nf4", "fp4"]) -> None:
        self.name = name
        self._library = load_library(f"quantize: {name}")

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        codes, state = self._library.quantize_4bit(
            weight.float().contiguous(), blocksize=GROUP_SIZE, compress_statistics=False, quant_type=self.name
        )
        rows, columns = weight.shape
        scales = state.absmax.view(rows, columns // GROUP_SIZE)
        return QuantizedWeight(FORMATS[self.name], codes.view(rows, columns // 2), scales)

    quantize_head = Int8Quantizer.quantize


@functools.cache
def load_library(wanted_by: str) -> ModuleType:
    """bitsandbytes.functional. Raises EngineUnavailable naming what it was wanted for."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise EngineUnavailable(
            f"{wanted_by} needs the bitsandbytes library: pip install bitsandbytes.", field="quantize"
        )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports optional extras of its own as warnings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import warns of torch's deprecations
        import bitsandbytes.functional as library
    return library
