"""AWQ checkpoints (arXiv 2306.00978): the `gemm` layout that AutoAWQ writes, 4 bits.

qweight int32 [K, N / 8], qzeros int32 [groups, N / 8], scales [groups, N]. A word holds eight neighbouring outputs, in
the order 0, 2, 4, 6, 1, 3, 5, 7 from its low bits. weight[n, k] = scales[g, n] * (code[k, n] - zero[g, n]).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engines.native.quantization.checkpoint import Method, Parts, Read, refuse
from engines.native.quantization.gptq import affine
from engines.native.quantization.weight import QuantizedWeight

_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def unpack(words: Tensor) -> Tensor:
    """int32 [rows, N / 8] to codes [rows, N]."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    stored = (words.unsqueeze(2) >> shifts) & 15
    codes = torch.empty_like(stored)
    codes[..., list(_ORDER)] = stored
    return codes.flatten(1)


def method(config: Mapping[str, Any]) -> Method:
    bits, version = int(config.get("bits", config.get("w_bit", 4))), str(config.get("version", "gemm")).lower()
    if bits != 4:
        refuse(f"awq with {bits} bits is not supported; 4 are")
    if version != "gemm":
        refuse(f"awq's version '{version}' is not supported; gemm is")

    def convert(parts: Parts) -> QuantizedWeight | Tensor:
        return affine(unpack(parts["qweight"]).T, parts["scales"].T, unpack(parts["qzeros"]).T, 4, None)

    def shape(shapes: Mapping[str, tuple[int, ...]], _read: Read) -> tuple[int, int]:
        columns, words = shapes["qweight"]
        return words * 8, columns

    return Method("awq", frozenset({"qweight", "qzeros", "scales"}), frozenset(), convert, shape)
