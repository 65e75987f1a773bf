"""A whole decode step in one CUDA graph, layer after layer with weights of their own: what the kernels add up to.

`cublas`: torch's linears between the fused kernels. `triton`: our linears in their place. `fused`: norms, gate and
residual inside the linears (small batches only). `+pdl`: every kernel with programmatic dependent launch.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.cases_attention import _paged
from benchmarks.gpu.kernels import Built, Case
from benchmarks.gpu.shapes import QWEN3_0_6B, QWEN3_8B, ModelShape
from engines.native.kernels import triton_fused, triton_linear, triton_sampler
from engines.native.kernels.triton_attention_decode import decode_attention

STEPS = [
    (QWEN3_0_6B, 1, 300),
    (QWEN3_0_6B, 8, 640),
    (QWEN3_0_6B, 64, 1088),
    (QWEN3_0_6B, 256, 1150),
    (QWEN3_8B, 1, 300),
    (QWEN3_8B, 8, 640),
    (QWEN3_8B, 64, 1088),
]


@dataclass(frozen=True, slots=True)
class Step:
    model: ModelShape
    batch: int
    context: int
    linear: str  # cublas, triton or fused
    pdl: bool

    @property
    def num_bytes(self) -> float:
        model = self.model
        layer = sum(n * k for name, (n, k) in model.linears.items() if name != "head")
        cached = self.batch * self.context * 2 * model.kv_heads * model.head_dim
        return 2.0 * (model.layers * (layer + cached) + model.vocab * model.hidden)


def _build(step: Step, warm: bool) -> Built:
    model, batch, pdl = step.model, step.batch, step.pdl
    num_layers = 1 if warm else model.layers
    weights = [
        {
            name: torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_(std=shape[1] ** -0.5)
            for name, shape in model.linears.items()
            if name != "head"
        }
        for _ in range(num_layers)
    ]
    head = torch.empty(model.linears["head"], dtype=torch.bfloat16, device="cuda").normal_(std=model.hidden**-0.5)
    norm = torch.ones(model.hidden, dtype=torch.bfloat16, device="cuda")
    head_norm = torch.ones(model.head_dim, dtype=torch.bfloat16, device="cuda")
    paged = [_paged([1] * batch, [step.context] * batch, model.heads, model.kv_heads, 64) for _ in range(num_layers)]
    positions = torch.full((batch,), step.context - 1, device="cuda")
    slots = paged[0].block_tables[:, -1].long() * 64 + (step.context - 1) % 64
    cos_sin = torch.rand(step.context, model.head_dim, device="cuda")
    hidden_in = torch.randn(batch, model.hidden, device="cuda", dtype=torch.bfloat16)
    zeros = torch.zeros(batch, device="cuda")
    counts = torch.arange(batch, device="cuda")

    def attend(layer: int, qkv: Tensor) -> Tensor:
        cache = paged[layer]
        query = triton_fused.rope_and_cache(
            qkv, positions, cos_sin, *((head_norm, head_norm) if model.qk_norm else (None, None)), 1e-6,
            cache.key_cache, cache.value_cache, slots, model.heads, model.kv_heads, model.head_dim, pdl=pdl,
        )  # fmt: skip
        decode_attention(
            query, cache.key_cache, cache.value_cache, cache.out, cache.block_tables, cache.seq_lens, 16384,
            model.head_dim**-0.5, pdl=pdl,
        )  # fmt: skip
        return cache.out.view(batch, -1)

    def fused() -> Tensor:
        linear = functools.partial(triton_linear.linear, pdl=pdl)
        hidden = hidden_in
        for layer, weight in enumerate(weights):
            attended = attend(layer, linear(hidden, weight["qkv"], norm_weight=norm, eps=1e-6))
            hidden = linear(attended, weight["o"], residual=hidden)
            gated = linear(hidden, weight["gate_up"], norm_weight=norm, eps=1e-6, gated=True)
            hidden = linear(gated, weight["down"], residual=hidden)
        return sample(linear(hidden, head, norm_weight=norm, eps=1e-6))

    def unfused() -> Tensor:
        linear = functional.linear if step.linear == "cublas" else functools.partial(triton_linear.linear, pdl=pdl)
        out, hidden = hidden_in, torch.zeros_like(hidden_in)
        for layer, weight in enumerate(weights):
            normed, hidden = triton_fused.add_rms_norm(out, hidden, norm, 1e-6, pdl=pdl)
            attended = attend(layer, linear(normed, weight["qkv"]))
            out = linear(attended, weight["o"])
            normed, hidden = triton_fused.add_rms_norm(out, hidden, norm, 1e-6, pdl=pdl)
            out = linear(triton_fused.silu_and_mul(linear(normed, weight["gate_up"]), pdl=pdl), weight["down"])
        normed, hidden = triton_fused.add_rms_norm(out, hidden, norm, 1e-6, pdl=pdl)
        return sample(linear(normed, head))

    def sample(logits: Tensor) -> Tensor:
        return triton_sampler.sample_with_logprobs(logits, zeros, None, None, None, counts, counts, pdl=pdl)[0]

    return Built([fused if step.linear == "fused" else unfused])


def cases() -> Iterator[Case]:
    for model, batch, context in STEPS:
        for linear in ("cublas", "triton", "fused"):
            if (linear == "fused" and batch > 16) or (linear != "cublas" and batch > 64):
                continue
            for pdl in (False, True):
                step = Step(model, batch, context, linear, pdl)
                yield Case("chain", "decode step", f"{model.name} B{batch} x {context}", linear + "+pdl" * pdl,
                           step.num_bytes, 0.0, functools.partial(_build, step),
                           f"chain {model.name} {batch} {linear} {pdl}", launches=1)  # fmt: skip
