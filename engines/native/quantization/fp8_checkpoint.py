"""Checkpoints in fp8: e4m3 weights with one scale, a scale a row, or a scale for each block of rows and columns.

weight float8_e4m3fn [N, K]; weight_scale [], [1] or [N, 1]; or weight_scale_inv [N / rows, K / columns] with
`weight_block_size`. The scale multiplies in all of them. Scales of activations are dynamic here, whatever the file has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engines.native.quantization.checkpoint import Method, Parts, Read, refuse
from engines.native.quantization.fp8 import FP8
from engines.native.quantization.int8 import INT8
from engines.native.quantization.weight import Format, QuantizedWeight


def method(config: Mapping[str, Any]) -> Method:
    block = config.get("weight_block_size")
    if block is None:
        return scaled_rows("fp8")
    if len(block) != 2:
        refuse(f"weight_block_size {block} is not rows and columns")
    rows, columns = int(block[0]), int(block[1])

    def convert(parts: Parts) -> QuantizedWeight | Tensor:
        codes, scales = parts["weight"], parts["weight_scale_inv"].float()
        by_row = scales.repeat_interleave(rows, dim=0)[: codes.shape[0]].contiguous()
        if codes.shape[1] % columns:
            return codes.float() * by_row.repeat_interleave(columns, dim=1)[:, : codes.shape[1]]
        return QuantizedWeight(FP8, codes, by_row)

    return Method("fp8", frozenset({"weight", "weight_scale_inv"}), frozenset(), convert, _shape)


def scaled_rows(name: str) -> Method:
    """e4m3 or int8 codes under `weight`, with one scale for the matrix or for each row under `weight_scale`."""

    def convert(parts: Parts) -> QuantizedWeight | Tensor:
        codes = parts["weight"]
        kinds: dict[torch.dtype, Format] = {torch.float8_e4m3fn: FP8, torch.int8: INT8}
        if codes.dtype not in kinds:
            raise ValueError(f"weight is {codes.dtype}, not e4m3 or int8")
        scales = parts["weight_scale"].float().reshape(-1, 1).expand(codes.shape[0], 1).contiguous()
        if bool(parts.get("weight_zero_point", torch.zeros(1)).float().any()):
            return (codes.float() - parts["weight_zero_point"].float().reshape(-1, 1)) * scales
        return QuantizedWeight(kinds[codes.dtype], codes, scales)

    return Method(name, frozenset({"weight", "weight_scale"}), frozenset({"weight_zero_point"}), convert, _shape)


def _shape(shapes: Mapping[str, tuple[int, ...]], _read: Read) -> tuple[int, int]:
    rows, columns = shapes["weight"]
    return rows, columns
