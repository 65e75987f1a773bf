"""int4, weight only: four bits a weight, a scale and an offset for each group of columns.

Also the form in which GPTQ, AWQ, W4A16 checkpoints and GGUF's 4-bit types are kept: all are affine in their codes.

Layout: a 32-bit word holds eight codes, and four consecutive words hold 32 consecutive columns, in the order that a
GPU's matrix units take: nibble i of word j has column 16 * (i // 2 % 2) + 8 * (i % 2) + 2 * j + i // 4 of its 32. Two
neighbouring columns are 16 bits apart, where one instruction reaches both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engines.native.quantization.int8 import Int8Quantizer
from engines.native.quantization.weight import Format, QuantizedWeight, column_costs

CHUNK = 32  # columns that are stored together
MIDDLE = 8  # the code that stands for zero where there is no offset
_WORDS, _NIBBLES = 4, 8  # of a chunk, of a word
_ROWS_AT_ONCE = 1024
_SHRINKS = (1.0, 0.9, 0.8)  # of a group's range, to start from: outliers may be cut off
_FITS = 3  # from each start; more bring less than a hundredth


def pack_words(codes: Tensor, *, side_by_side: bool = False) -> Tensor:
    """[N, K] integers of 0 to 15, K a multiple of 32, to int32 words [N, K / 8].

    side_by_side: neighbouring columns are in neighbouring nibbles, nibble i // 4 + 2 * (i % 4) instead of i.
    """
    columns = codes.to(torch.int32).unflatten(1, (-1, 2, 2, _WORDS, 2))  # i // 2 % 2, i % 2, j, i // 4
    order = (2, 3, 5) if side_by_side else (5, 2, 3)
    nibbles = columns.permute(*order, 0, 1, 4).flatten(0, 2)
    words = torch.zeros(nibbles.shape[1:], dtype=torch.int32, device=codes.device)
    for i, nibble in enumerate(nibbles):
        words |= nibble << (4 * i)
    return words.flatten(1)


def unpack_words(words: Tensor) -> Tensor:
    """int32 words [N, K / 8] to int32 codes [N, K] of 0 to 15."""
    chunks = words.view(words.shape[0], -1, 1, _WORDS)
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device).view(1, 1, _NIBBLES, 1)
    nibbles = ((chunks >> shifts) & 15).unflatten(2, (2, 2, 2))  # [N, chunks, i // 4, i // 2 % 2, i % 2, j]
    return nibbles.permute(0, 1, 3, 4, 5, 2).flatten(1)


def _decode(words: Tensor) -> Tensor:
    return (unpack_words(words) - MIDDLE).float()


INT4 = Format("int4", 8, CHUNK, _decode)
"""Codes are int32 words [N, K / 8]; a code q stands for q - 8."""


class Int4Quantizer:
    """See weight.Quantizer. Codes and a group's scale and offset are fitted to each other in turns, which converges as
    k-means does; of a few starts the result that errs least counts, rounding to the whole range among them."""

    name = "int4"
    weighs_columns = True
    spreads_errors = False  # which takes a start-up several times as long, for less than a percent

    def __init__(self, group_size: int = 32) -> None:
        assert group_size % CHUNK == 0
        self.group_size = group_size

    def quantize(self, weight: Tensor, moments: Tensor | None = None, /) -> QuantizedWeight:
        costs = column_costs(moments, self.group_size, weight.device)
        parts = [_quantize(rows, self.group_size, costs) for rows in weight.split(_ROWS_AT_ONCE)]
        codes, scales, offsets = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return QuantizedWeight(INT4, codes, scales, offsets)

    quantize_values = quantize
    quantize_head = Int8Quantizer.quantize


def _quantize(weight: Tensor, group_size: int, costs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(words [N, K / 8], scales and offsets [N, groups] float16)."""
    groups = weight.float().unflatten(1, (-1, group_size))
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    least = torch.full_like(low, float("inf"))
    best = (torch.ones_like(low), torch.zeros_like(low))
    for shrink in _SHRINKS:
        scale, offset = _stored((high - low) * (shrink / 15), (high + low) / 2, half_steps=1)
        for _ in range(_FITS + 1):
            codes = _codes(groups, scale, offset)
            error = (codes * scale).add_(offset).sub_(groups).square_().mul_(costs).sum(2, keepdim=True)
            better = error < least
            least = torch.where(better, error, least)
            best = (torch.where(better, scale, best[0]), torch.where(better, offset, best[1]))
            scale, offset = _fitted(groups, codes, costs)
    scale, offset = best
    codes = (_codes(groups, scale, offset) + MIDDLE).flatten(1)
    return pack_words(codes), scale.squeeze(2).half(), offset.squeeze(2).half()


def _codes(groups: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    return ((groups - offset) / scale).round_().clamp_(-MIDDLE, 15 - MIDDLE)


def _fitted(groups: Tensor, codes: Tensor, costs: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and offset of the least cost for these codes: a straight line through weighted points."""
    mean = (codes * costs).sum(2, keepdim=True)
    moments = (codes - mean) * costs  # which sum to nothing
    scale = (moments * groups).sum(2, keepdim=True) / (moments * codes).sum(2, keepdim=True).clamp(min=1e-12)
    return _stored(scale, (groups * costs).sum(2, keepdim=True) - mean * scale)


def _stored(scale: Tensor, offset: Tensor, half_steps: int = 0) -> tuple[Tensor, Tensor]:
    """Rounded to float16, so that codes are chosen for what is kept; a group of one value has any scale."""
    scale = scale.clamp(min=1e-7).half().float()
    return scale, (offset + half_steps * scale / 2).half().float()
