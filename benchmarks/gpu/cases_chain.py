"""A whole decode step in one CUDA graph, as the engine computes it, layers with weights of their own: what the kernels
add up to.

`ops`: the engine's own choice. `apart`: our products too, with norm, addition and gate in kernels of their own.
`cublas`: torch's products between the fused kernels. `+pdl`: with programmatic dependent launch.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.kernels import Built, Case
from benchmarks.gpu.shapes import QWEN3_0_6B, QWEN3_8B, ModelShape
from engines.native.kernels.ops import Ops
from engines.native.kernels.triton_ops import TritonOps
from engines.native.kernels.triton_sampler import sample_with_logprobs
from engines.native.layers.attention_metadata import AttentionMetadata
from engines.native.layers.context import LayerContext
from engines.native.models.hf_config import config_from_hf
from engines.native.models.llama import LlamaForCausalLM

BLOCK_SIZE = 64
STEPS = [
    (QWEN3_0_6B, 1, 300),
    (QWEN3_0_6B, 8, 640),
    (QWEN3_0_6B, 32, 640),
    (QWEN3_0_6B, 64, 1088),
    (QWEN3_0_6B, 256, 1150),
    (QWEN3_8B, 1, 300),
    (QWEN3_8B, 8, 640),
    (QWEN3_8B, 64, 1088),
]


class Apart(TritonOps):
    norm_linear = Ops.norm_linear
    norm_gated_linear = Ops.norm_gated_linear


class Library(Apart):
    logits = Ops.logits

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return functional.linear(x, weight, bias)


OPS: dict[str, type[TritonOps]] = {"ops": TritonOps, "apart": Apart, "cublas": Library}


@dataclass(frozen=True, slots=True)
class Step:
    model: ModelShape
    batch: int
    context: int
    ops: str
    pdl: bool

    @property
    def num_bytes(self) -> float:
        model = self.model
        layer = sum(n * k for name, (n, k) in model.linears.items() if name != "head")
        cached = self.batch * self.context * 2 * model.kv_heads * model.head_dim
        return 2.0 * (model.layers * (layer + cached) + model.vocab * model.hidden)


def _model(shape: ModelShape, num_layers: int, ops: Ops) -> LlamaForCausalLM:
    device, dtype = torch.device("cuda"), torch.bfloat16
    context = LayerContext(ops=ops, device=device, dtype=dtype, weight_dtype=dtype)
    model = LlamaForCausalLM(config_from_hf(shape.config(num_layers)), context, 16384)
    for slot in context.slots.values():
        for piece in slot.pieces:
            piece.target.normal_(std=0.02)
    return model


def _build(step: Step, warm: bool) -> Built:
    shape, batch = step.model, step.batch
    num_layers = 1 if warm else shape.layers
    model = _model(shape, num_layers, OPS[step.ops](pdl=step.pdl))
    blocks = -(-step.context // BLOCK_SIZE)
    tables = torch.randperm(batch * blocks, device="cuda").int().view(batch, blocks)
    cache = (batch * blocks, BLOCK_SIZE, shape.kv_heads, shape.head_dim)
    caches = [
        (torch.randn(cache, device="cuda", dtype=torch.bfloat16), torch.randn(cache, device="cuda").bfloat16())
        for _ in range(num_layers)
    ]
    metadata = AttentionMetadata(
        query_start_loc=torch.arange(batch + 1, dtype=torch.int32, device="cuda"),
        seq_lens=torch.full((batch,), step.context, dtype=torch.int32, device="cuda"),
        block_tables=tables,
        slot_mapping=tables[:, -1].long() * BLOCK_SIZE + (step.context - 1) % BLOCK_SIZE,
        num_decodes=batch,
        max_query_len=1,
        max_seq_len=16384,
    )
    input_ids = torch.randint(shape.vocab, (batch,), device="cuda")
    positions = torch.full((batch,), step.context - 1, device="cuda")
    zeros, counts = torch.zeros(batch, device="cuda"), torch.arange(batch, device="cuda")

    def run() -> Tensor:
        logits = model.compute_logits(model.forward(input_ids, positions, caches, metadata))
        return sample_with_logprobs(logits, zeros, None, None, None, counts, counts, pdl=step.pdl)[0]

    return Built([run])


def cases() -> Iterator[Case]:
    for model, batch, context in STEPS:
        for ops in OPS:
            if ops != "cublas" and batch > 64:
                continue
            for pdl in (False, True):
                step = Step(model, batch, context, ops, pdl)
                yield Case("chain", "decode step", f"{model.name} B{batch} x {context}", ops + "+pdl" * pdl,
                           step.num_bytes, 0.0, functools.partial(_build, step),
                           f"chain {model.name} {batch} {ops} {pdl}", launches=1)  # fmt: skip
