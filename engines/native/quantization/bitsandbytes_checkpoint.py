"""bitsandbytes checkpoints: 4 bits (nf4, fp4; scales themselves quantized or not) and 8 bits (LLM.int8, weight only).

4 bits: weight uint8 [N * K / 2, 1], weight.absmax, and weight.quant_state.bitsandbytes__nf4 (or fp4), which is JSON
with shape and block size. Scales in 8 bits index weight.nested_quant_map, times weight.nested_absmax for each block of
them, plus the state's nested_offset. 8 bits: weight int8 [N, K] and SCB [N], the largest magnitude of each row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from engines.native.quantization.bitsandbytes import FORMATS, GROUP_SIZES
from engines.native.quantization.checkpoint import Method, Parts, Read, refuse
from engines.native.quantization.int8 import INT8
from engines.native.quantization.weight import QuantizedWeight


def method(config: Mapping[str, Any]) -> Method:
    if config.get("load_in_8bit"):
        return Method("bitsandbytes", frozenset({"weight", "SCB"}), frozenset({"weight_format"}), _eight_bits, _plain)
    if not config.get("load_in_4bit"):
        refuse("bitsandbytes without load_in_4bit or load_in_8bit is not supported")
    name = str(config.get("bnb_4bit_quant_type", "fp4"))
    if name not in FORMATS:
        refuse(f"bnb_4bit_quant_type '{name}' is not supported; nf4 and fp4 are")
    state_name = f"weight.quant_state.bitsandbytes__{name}"

    def convert(parts: Parts) -> QuantizedWeight | Tensor:
        state = json.loads(bytes(parts[state_name].tolist()))
        rows, columns = state["shape"]
        group_size = state["blocksize"]
        if group_size not in GROUP_SIZES or columns % group_size:
            raise ValueError(f"blocks of {group_size} in {columns} columns; only {GROUP_SIZES} that divide work")
        scales = parts["weight.absmax"]
        if "weight.nested_absmax" in parts:
            nested = parts["weight.nested_absmax"].repeat_interleave(state["nested_blocksize"])[: scales.numel()]
            scales = parts["weight.nested_quant_map"][scales.long()] * nested + state["nested_offset"]
        codes = parts["weight"].view(rows, columns // 2)
        return QuantizedWeight(FORMATS[name], codes, scales.float().view(rows, columns // group_size))

    def shape(_shapes: Mapping[str, tuple[int, ...]], read: Read) -> tuple[int, int]:
        rows, columns = json.loads(bytes(read(state_name).tolist()))["shape"]
        return rows, columns

    required = frozenset({"weight", "weight.absmax", "weight.quant_map", state_name})
    nested = frozenset({"weight.nested_absmax", "weight.nested_quant_map"})
    return Method("bitsandbytes", required, nested, convert, shape)


def _eight_bits(parts: Parts) -> QuantizedWeight:
    return QuantizedWeight(INT8, parts["weight"], (parts["SCB"].float() / 127).view(-1, 1))


def _plain(shapes: Mapping[str, tuple[int, ...]], _read: Read) -> tuple[int, int]:
    rows, columns = shapes["weight"]
    return rows, columns
