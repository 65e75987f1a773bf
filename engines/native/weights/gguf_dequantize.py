"""ggml's quantized blocks to floating point, in plain PyTorch, to the bit what the gguf package computes.

Owns the layouts of the common types (the specification is ggml's ggml-common.h). Here because the package's numpy takes
several times as long, which at start-up is seconds for a small model and minutes for a large one; types without an
entry go through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from gguf import GGMLQuantizationType, dequantize
from gguf.constants import GGML_QUANT_SIZES
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 19  # of output at a time: the intermediate floats then stay in the cache

_PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
    GGMLQuantizationType.F64: torch.float64,
}


class StorageType(NamedTuple):
    """A ggml type: `block_bytes` hold `block_size` consecutive elements of a row."""

    kind: GGMLQuantizationType
    block_size: int
    block_bytes: int

    def row_bytes(self, columns: int) -> int:
        return columns // self.block_size * self.block_bytes


def storage_type(type_id: int) -> StorageType:
    """Raises ValueError for a number that the gguf package does not know."""
    kind = GGMLQuantizationType(type_id)
    return StorageType(kind, *GGML_QUANT_SIZES[kind])


def dequantize_rows(rows: Tensor, storage: StorageType, target: Tensor) -> None:
    """rows [N, row_bytes] uint8 into target [N, K], of any floating dtype and device.

    Raises NotImplementedError for a type that even the gguf package cannot read.
    """
    if storage.kind in _PLAIN:
        target.copy_(rows.contiguous().view(_PLAIN[storage.kind]))
        return
    step = max(1, _CHUNK_ELEMENTS // target.shape[1])
    for start in range(0, rows.shape[0], step):
        chunk = rows[start : start + step].contiguous()
        if storage.kind in _DECODERS:
            values = _DECODERS[storage.kind](chunk.view(-1, storage.block_bytes))
        else:
            values = torch.from_numpy(dequantize(chunk.numpy(), storage.kind))
        target[start : start + step].copy_(values.view(-1, target.shape[1]))


def dequantize_columns(rows: Tensor, storage: StorageType, columns: slice, target: Tensor) -> None:
    """Some columns of rows [N, row_bytes] into target [N, that many]; reads only the blocks that they lie in."""
    first, last = columns.start // storage.block_size, -(-columns.stop // storage.block_size)
    blocks = torch.empty(rows.shape[0], (last - first) * storage.block_size)
    dequantize_rows(rows[:, first * storage.block_bytes : last * storage.block_bytes], storage, blocks)
    start = columns.start - first * storage.block_size
    target.copy_(blocks[:, start : start + target.shape[1]])


def half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at byte `at` of each block, as float32 [blocks, 1]."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """[..., n] bytes to [..., 2, n] float32: all low halves, then all high ones."""
    values = torch.empty(*packed.shape[:-1], 2, packed.shape[-1])
    values.select(-2, 0).copy_(packed & 15)
    values.select(-2, 1).copy_(packed >> 4)
    return values


def _q4_0(blocks: Tensor) -> Tensor:
    return _nibbles(blocks[:, 2:]).sub_(8).mul_(half(blocks, 0).unsqueeze(2))


def _q4_1(blocks: Tensor) -> Tensor:
    scale, minimum = half(blocks, 0).unsqueeze(2), half(blocks, 2).unsqueeze(2)
    return _nibbles(blocks[:, 4:]).mul_(scale).add_(minimum)


def _fifth_bits(packed: Tensor) -> Tensor:
    """[blocks, 4] bytes: 16 for each of 32 bits that is set, as [blocks, 2, 16] float32."""
    bits = (packed.unsqueeze(2) >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.view(-1, 2, 16).float().mul_(16)


def _q5_0(blocks: Tensor) -> Tensor:
    values = _nibbles(blocks[:, 6:]).add_(_fifth_bits(blocks[:, 2:6])).sub_(16)
    return values.mul_(half(blocks, 0).unsqueeze(2))


def _q5_1(blocks: Tensor) -> Tensor:
    values = _nibbles(blocks[:, 8:]).add_(_fifth_bits(blocks[:, 4:8]))
    return values.mul_(half(blocks, 0).unsqueeze(2)).add_(half(blocks, 2).unsqueeze(2))


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].view(torch.int8) * half(blocks, 0)


def scales_and_minimums(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of the eight groups of a 4- or 5-bit super-block: float32 [blocks, 4, 2, 1] each.

    Twelve bytes hold sixteen 6-bit numbers: the first four scales and minimums in the low 6 bits of bytes 0-3 and 4-7;
    the others with 4 bits in bytes 8-11 (scale low, minimum high) and their top 2 bits above the former.
    """
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([first & 63, (third & 15) | ((first >> 6) << 4)], dim=1)
    minimums = torch.cat([second & 63, (third >> 4) | ((second >> 6) << 4)], dim=1)
    scales, minimums = scales * half(blocks, 0), minimums * half(blocks, 2)
    return scales.view(-1, 4, 2, 1), minimums.view(-1, 4, 2, 1)


def _q4_k(blocks: Tensor) -> Tensor:
    scales, minimums = scales_and_minimums(blocks)
    return _nibbles(blocks[:, 16:].unflatten(1, (4, 32))).mul_(scales).sub_(minimums)


def _q5_k(blocks: Tensor) -> Tensor:
    scales, minimums = scales_and_minimums(blocks)
    fifth = (blocks[:, 16:48].unsqueeze(1) >> torch.arange(8, dtype=torch.uint8).unsqueeze(1)) & 1  # [blocks, 8, 32]
    values = _nibbles(blocks[:, 48:].unflatten(1, (4, 32))).add_(fifth.view(-1, 4, 2, 32).float().mul_(16))
    return values.mul_(scales).sub_(minimums)


def _q6_k(blocks: Tensor) -> Tensor:
    low = blocks[:, :128].unflatten(1, (2, 2, 32))
    high = blocks[:, 128:192].unflatten(1, (2, 1, 32)) >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8).unsqueeze(1)
    values = torch.cat([low & 15, low >> 4], dim=2) | ((high & 3) << 4)  # [blocks, 2, 4, 32]
    scales = blocks[:, 192:208].view(torch.int8) * half(blocks, 208)
    return (values.float().sub_(32).view(-1, 16, 16)).mul_(scales.unsqueeze(2))


_DECODERS: Mapping[GGMLQuantizationType, Callable[[Tensor], Tensor]] = {
    GGMLQuantizationType.Q4_0: _q4_0,
    GGMLQuantizationType.Q4_1: _q4_1,
    GGMLQuantizationType.Q5_0: _q5_0,
    GGMLQuantizationType.Q5_1: _q5_1,
    GGMLQuantizationType.Q8_0: _q8_0,
    GGMLQuantizationType.Q4_K: _q4_k,
    GGMLQuantizationType.Q5_K: _q5_k,
    GGMLQuantizationType.Q6_K: _q6_k,
}
