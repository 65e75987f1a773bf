"""GGUF's quantized blocks in the form that kernels serve: Q4_0, Q4_1 and Q4_K in four bits, Q8_0 and Q6_K in eight.

Owns the translation of a row's blocks; the specification is ggml's ggml-common.h, the meaning weights/gguf_dequantize.
Codes are the file's own. Scales and offsets that a format composes of two numbers (Q4_K, Q6_K) are rounded to float16,
and so are offsets, which here count from the middle code: an error of 2**-11 of eight steps at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from engines.native.quantization.int4 import INT4, MIDDLE, pack_words
from engines.native.quantization.int8 import INT8
from engines.native.quantization.weight import QuantizedWeight
from engines.native.weights.gguf_dequantize import StorageType, half, scales_and_minimums


def from_rows(rows: Tensor, storage: StorageType) -> QuantizedWeight | None:
    """rows [N, row_bytes] uint8 of a matrix; None for a type that no kernel serves."""
    convert = _CONVERTERS.get(storage.kind)
    if convert is None:
        return None
    return convert(rows.contiguous().view(-1, storage.block_bytes), rows.shape[0])


def _halves(packed: Tensor) -> Tensor:
    """[..., n] bytes to [..., 2 * n] codes: all low halves, then all high ones."""
    return torch.cat([packed & 15, packed >> 4], dim=-1)


def _int4(codes: Tensor, scales: Tensor, minimums: Tensor | None, rows: int) -> QuantizedWeight:
    """codes of 0 to 15; scales * codes + minimums, or scales * (codes - 8) without."""
    scales = scales.view(rows, -1)
    offsets = None if minimums is None else (minimums.view(rows, -1) + MIDDLE * scales).half()
    return QuantizedWeight(INT4, pack_words(codes.reshape(rows, -1)), scales.half(), offsets)


def _q4_0(blocks: Tensor, rows: int) -> QuantizedWeight:
    return _int4(_halves(blocks[:, 2:]), half(blocks, 0), None, rows)


def _q4_1(blocks: Tensor, rows: int) -> QuantizedWeight:
    return _int4(_halves(blocks[:, 4:]), half(blocks, 0), half(blocks, 2), rows)


def _q4_k(blocks: Tensor, rows: int) -> QuantizedWeight:
    scales, minimums = scales_and_minimums(blocks)
    return _int4(_halves(blocks[:, 16:].unflatten(1, (4, 32))), scales, -minimums, rows)


def _q8_0(blocks: Tensor, rows: int) -> QuantizedWeight:
    codes = blocks[:, 2:].contiguous().view(torch.int8).view(rows, -1)
    return QuantizedWeight(INT8, codes, half(blocks, 0).half().view(rows, -1))


def _q6_k(blocks: Tensor, rows: int) -> QuantizedWeight:
    low = blocks[:, :128].unflatten(1, (2, 2, 32))
    high = blocks[:, 128:192].unflatten(1, (2, 1, 32)) >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8).unsqueeze(1)
    codes = torch.cat([low & 15, low >> 4], dim=2) | ((high & 3) << 4)  # [blocks, 2, 4, 32]
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float() * half(blocks, 208)
    codes = (codes.to(torch.int8) - 32).reshape(rows, -1)
    return QuantizedWeight(INT8, codes, scales.half().view(rows, -1))


_CONVERTERS: Mapping[GGMLQuantizationType, Callable[[Tensor, int], QuantizedWeight]] = {
    GGMLQuantizationType.Q4_0: _q4_0,
    GGMLQuantizationType.Q4_1: _q4_1,
    GGMLQuantizationType.Q4_K: _q4_k,
    GGMLQuantizationType.Q8_0: _q8_0,
    GGMLQuantizationType.Q6_K: _q6_k,
}
