"""compressed-tensors checkpoints (LLM Compressor): FP8, INT W8A8 and W4A16 / W8A16.

`float-quantized` and `int-quantized` keep codes under `weight` and a scale a row, or one, under `weight_scale`.
`pack-quantized` keeps int32 words under `weight_packed` [N, K * bits / 32], codes along K from the low bits with the
middle added, weight_scale [N, groups], and where they are not symmetric weight_zero_point packed along N. Activations
that the scheme would round to int8 are not rounded here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engines.native.quantization.checkpoint import Method, Parts, Read, refuse
from engines.native.quantization.fp8_checkpoint import scaled_rows
from engines.native.quantization.gptq import affine, unpack
from engines.native.quantization.weight import QuantizedWeight


def method(config: Mapping[str, Any]) -> Method:
    groups: Mapping[str, Mapping[str, Any]] = config.get("config_groups") or {}
    weights = [group.get("weights") or {} for group in groups.values()]
    layouts = {(str(w.get("type")), int(w.get("num_bits", 0)), str(w.get("strategy"))) for w in weights}
    if len(layouts) != 1:
        refuse(f"config_groups hold {len(layouts)} kinds of weights; one is supported")
    kind, bits, strategy = layouts.pop()
    layout = str(config.get("format", ""))
    if layout in ("float-quantized", "int-quantized", "naive-quantized"):
        if bits != 8 or strategy not in ("tensor", "channel"):
            refuse(f"format {layout} with {bits} bits by {strategy} is not supported; 8 by tensor or channel are")
        return scaled_rows("compressed-tensors")
    if layout != "pack-quantized" or kind != "int" or bits not in (4, 8):
        refuse(f"format {layout} with {bits}-bit {kind} weights is not supported")

    def convert(parts: Parts) -> QuantizedWeight | Tensor:
        columns = int(parts["weight_shape"][1])
        codes = unpack(parts["weight_packed"], bits, 1)[:, :columns]
        zeros = torch.full(parts["weight_scale"].shape, 1 << (bits - 1), dtype=torch.int32)
        if "weight_zero_point" in parts:
            zeros = unpack(parts["weight_zero_point"], bits, 0)[: codes.shape[0]]
        return affine(codes, parts["weight_scale"], zeros, bits, parts.get("weight_g_idx"))

    def shape(shapes: Mapping[str, tuple[int, ...]], _read: Read) -> tuple[int, int]:
        rows, words = shapes["weight_packed"]
        return rows, words * 32 // bits

    required = frozenset({"weight_packed", "weight_scale", "weight_shape"})
    return Method("compressed-tensors", required, frozenset({"weight_zero_point", "weight_g_idx"}), convert, shape)
