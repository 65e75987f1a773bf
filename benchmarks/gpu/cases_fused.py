"""The fused element-wise kernels, against the plain PyTorch twins."""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.gpu.kernels import Built, Case
from benchmarks.gpu.shapes import QWEN3_0_6B, QWEN3_8B, ModelShape
from benchmarks.gpu.timing import num_copies
from engines.native.kernels import reference, triton_fused


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def _norm(tokens: int, hidden: int, kernels, options: dict[str, bool], warm: bool) -> Built:
    copies = 1 if warm else num_copies(8 * tokens * hidden)
    inputs = [_random(2, tokens, hidden) for _ in range(copies)]
    weight = _random(hidden)

    def run(x: Tensor, residual: Tensor) -> Tensor:
        return kernels.add_rms_norm(x, residual, weight, 1e-6, **options)[0]

    x, residual = inputs[0]
    return Built(
        [functools.partial(run, *pair) for pair in inputs],
        lambda: reference.rms_norm((x + residual).float(), weight.float(), 1e-6),
    )


def _silu(tokens: int, intermediate: int, kernels, options: dict[str, bool], warm: bool) -> Built:
    copies = 1 if warm else num_copies(6 * tokens * intermediate)
    inputs = [_random(tokens, 2 * intermediate) for _ in range(copies)]
    calls = [functools.partial(kernels.silu_and_mul, gate_up, **options) for gate_up in inputs]
    return Built(calls, lambda: reference.silu_and_mul(inputs[0].float()))


def _rope(tokens: int, model: ModelShape, kernels, options: dict[str, bool], warm: bool) -> Built:
    device = torch.device("cuda")
    blocks = -(-tokens // 64) + 8
    caches = [_random(blocks, 64, model.kv_heads, model.head_dim) for _ in range(2)]
    slots = torch.randperm(blocks * 64, device=device)[:tokens]
    positions = torch.randint(0, 4096, (tokens,), device=device)
    angles = torch.rand(4096, model.head_dim // 2, device=device) * 6
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=1)
    norms = _random(2, model.head_dim)
    heads = (model.heads, model.kv_heads, model.head_dim)
    copies = 1 if warm else num_copies(4 * tokens * model.qkv)
    inputs = [_random(tokens, model.qkv) for _ in range(copies)]

    def run(kernels, qkv: Tensor, **options: bool) -> Tensor:
        return kernels.rope_and_cache(qkv, positions, cos_sin, *norms, 1e-6, *caches, slots, *heads, **options)

    return Built([functools.partial(run, kernels, qkv, **options) for qkv in inputs], lambda: run(reference, inputs[0]))


def cases() -> Iterator[Case]:
    for model in (QWEN3_0_6B, QWEN3_8B):
        for tokens in (1, 64, 512, 4096):
            builders = {
                "add_rms_norm": (8 * model.hidden, functools.partial(_norm, tokens, model.hidden)),
                "silu_and_mul": (6 * model.intermediate, functools.partial(_silu, tokens, model.intermediate)),
                "rope_and_cache": (4 * model.qkv, functools.partial(_rope, tokens, model)),
            }
            for name, (bytes_per_token, build) in builders.items():
                variants = {"triton": (triton_fused, {}), "triton+pdl": (triton_fused, {"pdl": True})}
                if name != "rope_and_cache":  # its twin selects rows on the host, which a graph cannot capture
                    variants["torch"] = (reference, {})
                for variant, (kernels, options) in variants.items():
                    yield Case("fused", name, f"{model.name} x {tokens}", variant, float(bytes_per_token * tokens), 0.0,
                               functools.partial(build, kernels, options),
                               "" if variant == "torch" else f"{name} {model.name} {variant}")  # fmt: skip
