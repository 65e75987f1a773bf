"""Checkpoints of other tools' layouts, written here code by code from what the formats say, load as what they mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from config.engines import NativeSettings
from engines.errors import EngineUnavailable
from engines.native.kernels import reference
from engines.native.kernels.ops import Ops
from engines.native.kernels.quantized import QuantizedOps, ReferenceProduct
from engines.native.models.hf_config import config_from_hf
from engines.native.quantization import choose_quantizer
from engines.native.quantization.checkpoint import CheckpointSource, method_of
from engines.native.weights.loader import load_model
from engines.native.weights.safetensors import SafetensorsSource
from tests.engines.native.quantization.bitsandbytes_library import load_library

N, K, GROUP = 64, 128, 64
Made = tuple[dict[str, Any], dict[str, Tensor], Tensor]
"""quantization_config, the tensors of a layer `x`, and its matrix [N, K]."""


def random_codes(bits: int) -> Tensor:
    return torch.randint(0, 2**bits, (N, K), generator=torch.Generator().manual_seed(bits))


def scales_and_zeros(bits: int, *, symmetric: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    scales = (torch.rand(N, K // GROUP, generator=generator) + 0.5) / 2**bits
    zeros = torch.randint(1, 2**bits, (N, K // GROUP), generator=generator)
    return scales.half(), torch.full_like(zeros, 2 ** (bits - 1)) if symmetric else zeros


def matrix(codes: Tensor, scales: Tensor, zeros: Tensor, groups: Tensor | None = None) -> Tensor:
    groups = torch.arange(K) // GROUP if groups is None else groups
    return (codes - zeros[:, groups]) * scales.float()[:, groups]


def words(rows: Tensor, bits: int, order: range | tuple[int, ...] | None = None) -> Tensor:
    """[R, C] codes to int32 [R, C * bits / 32]: a word's codes from its low bits on, in `order` of the columns."""
    per_word = 32 // bits
    order = order or range(per_word)
    codes = rows.long().reshape(rows.shape[0], -1, per_word)[..., list(order)]
    return (codes << torch.arange(0, 32, bits)).sum(dim=2).to(torch.int32)


def gptq(bits: int, *, symmetric: bool = False, version: str = "gptq", act_order: bool = False) -> Made:
    codes, (scales, zeros) = random_codes(bits), scales_and_zeros(bits, symmetric=symmetric)
    groups = torch.arange(K) // GROUP
    if act_order:
        groups = groups.flip(0)
    tensors = {
        "x.qweight": words(codes, bits).T.contiguous(),
        "x.qzeros": words(zeros.T - int(version == "gptq"), bits),
        "x.scales": scales.T.contiguous(),
        "x.g_idx": groups.int(),
    }
    config = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "checkpoint_format": version}
    return config, tensors, matrix(codes, scales, zeros, groups)


def awq() -> Made:
    codes, (scales, zeros) = random_codes(4), scales_and_zeros(4)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    tensors = {
        "x.qweight": words(codes.T, 4, order),
        "x.qzeros": words(zeros.T, 4, order),
        "x.scales": scales.T.contiguous(),
    }
    return {"quant_method": "awq", "bits": 4, "version": "gemm"}, tensors, matrix(codes, scales, zeros)


def compressed(kind: str, strategy: str, layout: str, bits: int = 8) -> dict[str, Any]:
    weights = {"type": kind, "num_bits": bits, "strategy": strategy, "group_size": GROUP}
    return {"quant_method": "compressed-tensors", "format": layout, "config_groups": {"group_0": {"weights": weights}}}


def packed(bits: int, *, symmetric: bool) -> Made:
    codes, (scales, zeros) = random_codes(bits), scales_and_zeros(bits, symmetric=symmetric)
    tensors = {
        "x.weight_packed": words(codes, bits),
        "x.weight_scale": scales.bfloat16(),
        "x.weight_shape": torch.tensor([N, K]),
    }
    if not symmetric:
        tensors["x.weight_zero_point"] = words(zeros.T, bits).T.contiguous()
    return compressed("int", "group", "pack-quantized", bits), tensors, matrix(codes, scales.bfloat16(), zeros)


def byte_codes(config: dict[str, Any], dtype: torch.dtype, scale_shape: tuple[int, ...]) -> Made:
    codes = (torch.randn(N, K, generator=torch.Generator().manual_seed(1)) * 30).clamp(-120, 120).to(dtype)
    scales = torch.rand(scale_shape, generator=torch.Generator().manual_seed(2)) / 100
    expected = codes.float() * (scales if scales.dim() else scales.view(1, 1))
    tensors = {"x.weight": codes, "x.weight_scale": scales, "x.input_scale": torch.ones(1)}
    return config, tensors, expected


def fp8_blocks() -> Made:
    config, tensors, _ = byte_codes({"quant_method": "fp8"}, torch.float8_e4m3fn, ())
    scales = torch.rand(2, 4)
    expected = tensors["x.weight"].float() * scales.repeat_interleave(48, 0)[:N].repeat_interleave(32, 1)
    tensors = {"x.weight": tensors["x.weight"], "x.weight_scale_inv": scales}
    return {**config, "weight_block_size": [48, 32]}, tensors, expected


def bitsandbytes(name: str, *, nested: bool) -> Made:
    library = load_library()
    plain = torch.randn(N, K, generator=torch.Generator().manual_seed(3))
    codes, state = library.quantize_4bit(plain, blocksize=64, compress_statistics=nested, quant_type=name)
    tensors = {"x.weight": codes, **{f"x.weight.{key}": value for key, value in state.as_dict(packed=True).items()}}
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": name}
    return config, tensors, library.dequantize_4bit(codes, state)


def eight_bits() -> Made:
    codes, largest = torch.randint(-127, 128, (N, K)).to(torch.int8), torch.rand(N)
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    return config, {"x.weight": codes, "x.SCB": largest}, codes * (largest / 127).view(-1, 1)


CHECKPOINTS: dict[str, tuple[Callable[[], Made], str]] = {  # and the format that is kept
    "gptq symmetric": (lambda: gptq(4, symmetric=True), "int4"),
    "gptq": (lambda: gptq(4), "int4"),
    "gptq v2": (lambda: gptq(4, version="gptq_v2"), "int4"),
    "gptq out of order": (lambda: gptq(4, act_order=True), ""),
    "gptq 8 bits": (lambda: gptq(8, symmetric=True), "int8"),
    "awq": (awq, "int4"),
    "W4A16": (lambda: packed(4, symmetric=True), "int4"),
    "W4A16 asymmetric": (lambda: packed(4, symmetric=False), "int4"),
    "W8A16": (lambda: packed(8, symmetric=True), "int8"),
    "W8A8": (lambda: byte_codes(compressed("int", "channel", "int-quantized"), torch.int8, (N, 1)), "int8"),
    "FP8": (lambda: byte_codes(compressed("float", "channel", "float-quantized"), torch.float8_e4m3fn, (N, 1)), "fp8"),
    "fp8": (lambda: byte_codes({"quant_method": "fp8"}, torch.float8_e4m3fn, ()), "fp8"),
    "fp8 blocks": (fp8_blocks, "fp8"),
    "nf4": (lambda: bitsandbytes("nf4", nested=False), "nf4"),
    "nf4 nested": (lambda: bitsandbytes("nf4", nested=True), "nf4"),
    "fp4": (lambda: bitsandbytes("fp4", nested=False), "fp4"),
    "LLM.int8": (eight_bits, "int8"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_layer_means_what_its_format_says_and_stays_quantized(name: str, tmp_path: Path) -> None:
    make, kept = CHECKPOINTS[name]
    config, tensors, expected = make()
    save_file(tensors, tmp_path / "model.safetensors")
    source = CheckpointSource(SafetensorsSource(tmp_path, quantized=True), method_of(config))
    assert set(source.tensors) == {"x.weight"}
    assert source.tensors["x.weight"].shape == (N, K)
    rows, columns = slice(16, 48), slice(64, 128)
    plain = torch.empty(32, 64)
    source.read("x.weight", (rows, columns), plain)
    # An offset is stored rounded: half a unit in the last place of eight steps.
    tolerance = {"atol": 8 * 1.5 / 16 * 2**-8, "rtol": 0.0} if kept == "int4" else {"atol": 1e-6, "rtol": 1e-5}
    torch.testing.assert_close(plain, expected[rows, columns].float(), **tolerance)
    quantized = source.read_quantized("x.weight", (rows, columns))
    assert ("" if quantized is None else quantized.format.name) == kept
    if quantized is not None:
        torch.testing.assert_close(quantized.dequantize(), plain)


MODEL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": K,
    "intermediate_size": N,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
}


def test_a_model_loads_with_layers_that_are_quantized_and_one_that_is_not(tmp_path: Path) -> None:
    config, layer, expected = gptq(4)
    prefix = "model.layers.0"
    tensors = {f"{prefix}.mlp.{part}.{name[2:]}": t.clone() for part in ("gate_proj",) for name, t in layer.items()}
    plain = {"mlp.up_proj": (N, K), "mlp.down_proj": (K, N), "self_attn.q_proj": (K, K), "self_attn.o_proj": (K, K)}
    plain |= {"self_attn.k_proj": (K // 2, K), "self_attn.v_proj": (K // 2, K)}
    tensors |= {f"{prefix}.{name}.weight": torch.randn(shape) for name, shape in plain.items()}
    norms = (f"{prefix}.input_layernorm.weight", f"{prefix}.post_attention_layernorm.weight", "model.norm.weight")
    tensors |= {name: torch.ones(K) for name in norms}
    tensors |= {"model.embed_tokens.weight": torch.randn(96, K), "lm_head.weight": torch.randn(96, K)}
    save_file(tensors, tmp_path / "model.safetensors")
    described = config_from_hf({**MODEL, "quantization_config": config})
    model: Any = load_model(
        described, tmp_path, device=torch.device("cpu"), dtype=torch.float32,
        ops=QuantizedOps(cast("Ops", reference), ReferenceProduct),
        quantizer=choose_quantizer(NativeSettings(), described.quantization),
    )  # fmt: skip
    x = torch.randn(3, K)
    gate_up = model.layers[0].mlp.gate_up_proj(x)
    torch.testing.assert_close(gate_up[:, :N], x @ expected.T, atol=0.3, rtol=0.02)
    torch.testing.assert_close(gate_up[:, N:], x @ tensors[f"{prefix}.mlp.up_proj.weight"].T)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "quip"}, "quant_method 'quip' is not supported; these are: gptq, awq"),
        ({"quant_method": "gptq", "bits": 3}, "gptq with 3 bits"),
        ({"quant_method": "awq", "version": "gemv"}, "version 'gemv'"),
        (compressed("float", "tensor", "nvfp4-pack-quantized", 4), "format nvfp4-pack-quantized with 4-bit float"),
        ({"quant_method": "bitsandbytes"}, "without load_in_4bit"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else None,
)
def test_what_is_not_supported_is_refused_by_name(config: dict[str, Any], words: str) -> None:
    with pytest.raises(EngineUnavailable, match=words):
        method_of(config)


def test_a_quantized_checkpoint_is_not_quantized_again() -> None:
    with pytest.raises(EngineUnavailable, match=r"quantize is 'int8', but the checkpoint is quantized already \(awq\)"):
        choose_quantizer(NativeSettings(quantize="int8"), {"quant_method": "awq"})
