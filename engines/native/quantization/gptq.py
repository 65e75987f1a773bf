"""GPTQ checkpoints (arXiv 2210.17323), 4 and 8 bits: the layout that AutoGPTQ and GPTQModel write.

qweight int32 [K * bits / 32, N], codes along K from the low bits; qzeros int32 [groups, N * bits / 32], along N; scales
[groups, N]; g_idx int32 [K], each column's group. weight[n, k] = scales[g, n] * (code[k, n] - zero[g, n]), where the
first version of the format stores zeros less one. Groups out of order (`desc_act`) are dequantized: no kernel of ours
gathers columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engines.native.quantization.checkpoint import Method, Parts, Read, refuse
from engines.native.quantization.int4 import CHUNK, INT4, MIDDLE, pack_words
from engines.native.quantization.int8 import INT8
from engines.native.quantization.weight import QuantizedWeight


def unpack(words: Tensor, bits: int, dim: int) -> Tensor:
    """int32 words to codes (int32), those of a word following each other along dim from its low bits."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    codes = (words.unsqueeze(dim + 1) >> shifts.view(-1, *[1] * (words.dim() - dim - 1))) & (2**bits - 1)
    return codes.flatten(dim, dim + 1)


def method(config: Mapping[str, Any]) -> Method:
    bits = int(config.get("bits", 4))
    if bits not in (4, 8):
        refuse(f"gptq with {bits} bits is not supported; 4 and 8 are")
    zero_shift = 0 if config.get("checkpoint_format", "gptq") == "gptq_v2" else 1

    def convert(parts: Parts) -> QuantizedWeight | Tensor:
        codes = unpack(parts["qweight"], bits, 0).T  # [N, K]
        zeros = (unpack(parts["qzeros"], bits, 1).T + zero_shift)[: codes.shape[0]]  # [N, groups]
        return affine(codes, parts["scales"].T, zeros, bits, parts.get("g_idx"))

    def shape(shapes: Mapping[str, tuple[int, ...]], _read: Read) -> tuple[int, int]:
        words, rows = shapes["qweight"]
        return rows, words * 32 // bits

    required = frozenset({"qweight", "qzeros", "scales"})
    return Method("gptq", required, frozenset({"g_idx"}), convert, shape)


def affine(codes: Tensor, scales: Tensor, zeros: Tensor, bits: int, groups: Tensor | None) -> QuantizedWeight | Tensor:
    """scales * (codes - zeros): codes [N, K] from 0 on, scales and zeros [N, groups], groups [K] or None for in order.

    A plain matrix [N, K] float32 where columns of a group do not follow each other, or of what kernels cannot have:
    groups that are no multiple of 32 in 4 bits, or zeros off the middle in 8.
    """
    columns, num_groups = codes.shape[1], scales.shape[1]
    in_order = torch.arange(columns) * num_groups // columns
    group_of = in_order if groups is None else groups.long()
    middle = 1 << (bits - 1)
    centred = bool((zeros == middle).all())
    ordered = columns % num_groups == 0 and torch.equal(group_of, in_order)
    fits = (columns // num_groups) % CHUNK == 0 if bits == 4 else centred
    if not (ordered and fits):
        return (codes - zeros[:, group_of]).float() * scales.float()[:, group_of]
    scales = scales.contiguous()
    if bits == 8:
        return QuantizedWeight(INT8, (codes - middle).to(torch.int8), scales)
    offsets = None if centred else ((MIDDLE - zeros).float() * scales.float()).to(scales.dtype)
    return QuantizedWeight(INT4, pack_words(codes.contiguous()), scales, offsets)
