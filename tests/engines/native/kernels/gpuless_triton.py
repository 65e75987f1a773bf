"""Counts what Triton would compile for an H100, where there is none: compiles nothing, launches nothing.

    python -m tests.engines.native.kernels.gpuless_triton

Warms a small model up on CPU tensors and then runs random steps, mixed and not, as a scheduler would. Prints how many
kernels the warm-up asked for, and each one that only a later step did. In a process of its own, since Triton's compiler
and its interpreter do not share one.
"""

import random
from typing import Any

import numpy as np
import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from engines.native import row_ops
from engines.native.chunk_graphs import ChunkGraphs
from engines.native.cuda_graphs import DecodeGraphs, GraphContext, graph_sizes
from engines.native.grammar.constraint import TokenMasks
from engines.native.kernels import triton_rows, triton_tournament, triton_watermark
from engines.native.kernels.triton_mask import mask_tokens
from engines.native.kernels.triton_ops import TritonOps, batch_sizes
from engines.native.kernels.triton_sampler import sample_core
from engines.native.kv_cache import KVCache, KVCacheShape
from engines.native.layers.context import LayerContext
from engines.native.model_runner import ModelRunner
from engines.native.models.hf_config import config_from_hf
from engines.native.models.llama import LlamaForCausalLM
from engines.native.row_ops import RowOps, StepTensors
from engines.native.row_state import RowState
from engines.native.sampling.ops import SamplingOps
from engines.native.sampling.sampler import Sampler
from engines.native.sampling.state import SamplingState
from engines.native.scheduler import SchedulerLimits
from engines.native.types import GREEN_LIST_SELF, GUMBEL, SYNTHID, Admission, BatchPlan, TokenParams, Watermark
from engines.native.warm_up import warm_up

MAX_ROWS, MAX_LEN, BLOCK_SIZE = 80, 300, 16
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 512,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 5000,
    "max_position_embeddings": MAX_LEN,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
}
PARAMS = (
    TokenParams(max_tokens=1, temperature=0.0),
    TokenParams(max_tokens=1),
    TokenParams(max_tokens=1, top_k=5),
    TokenParams(max_tokens=1, top_p=0.5),
    TokenParams(max_tokens=1, min_p=0.1, top_k=3),
    TokenParams(max_tokens=1, temperature=0.0, repetition_penalty=1.5, logprobs=2, prompt_logprobs=1),
    TokenParams(max_tokens=1, top_p=0.5, watermark=Watermark(GREEN_LIST_SELF, 5, 3, threshold=7, delta=1.5)),
    TokenParams(max_tokens=1, watermark=Watermark(GUMBEL, 5, 4)),
    TokenParams(max_tokens=1, min_p=0.1, watermark=Watermark(SYNTHID, 5, 4, depth=12)),
)


class H100:
    """The part of Triton's driver that a launch needs before it compiles."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


def record_compilations() -> set[str]:
    """The set grows with each kernel that Triton finds missing; none is ever made."""
    asked: set[str] = set()

    def record(*, key: str, fn: Any, **_: Any) -> bool:
        asked.add(f"{fn.name}: {key}")
        return True

    driver.set_active(H100())
    knobs.runtime.jit_cache_hook = record
    return asked


def random_plan(rng: random.Random) -> BatchPlan:
    """Some decodes, some chunks that follow a context or not; every token is known, since none is ever sampled."""
    num_decodes, num_chunks = rng.choice([0, 1, 2, 7, 16, 31, 66]), rng.choice([0, 1, 2, 5])
    num_chunks = num_chunks or int(not num_decodes)
    counts = [1] * num_decodes + [rng.randint(1, 40) for _ in range(num_chunks)]
    starts = [rng.randint(0, MAX_LEN - 1 - count) for count in counts]
    rows = rng.sample(range(MAX_ROWS), len(counts))
    params = rng.choice(PARAMS)
    return BatchPlan(
        rows=rows,
        starts=starts,
        num_tokens=counts,
        samples=[True] * num_decodes + [rng.random() < 0.5 for _ in range(num_chunks)],
        num_decodes=num_decodes,
        admissions=[Admission(row, [0] * (MAX_LEN - 1), MAX_LEN - 1, params) for row in rows],
    )


def read_rows(*arguments: Any) -> StepTensors:
    """Asks for the kernel, and returns what it would have written: other code looks token ids up."""
    triton_rows.read_rows(*arguments)
    return row_ops.read_rows(*arguments)


def main() -> None:
    asked = record_compilations()
    torch.cuda.graph_pool_handle = lambda: None  # type: ignore[assignment]
    device, dtype = torch.device("cpu"), torch.bfloat16
    config = config_from_hf(CONFIG)
    context = LayerContext(ops=TritonOps(), device=device, dtype=dtype, weight_dtype=dtype)
    model = LlamaForCausalLM(config, context, MAX_LEN)
    shape = KVCacheShape(
        num_layers=config.num_layers, num_kv_heads=config.num_kv_heads, head_dim=config.head_dim,
        block_size=BLOCK_SIZE, dtype=dtype,
    )  # fmt: skip
    cache = KVCache(shape, 4, device)
    rows = RowState(MAX_ROWS, MAX_LEN, BLOCK_SIZE, device, RowOps(read_rows, triton_rows.store_tokens))
    sampling = SamplingState(MAX_ROWS + 1, config.vocab_size, device)
    ops = SamplingOps(
        sample_core=sample_core,
        mask_tokens=mask_tokens,
        mask_filtered=triton_tournament.mask_filtered,
        mark_tokens=triton_watermark.mark_tokens,
        fresh_contexts=triton_watermark.fresh_contexts,
        compete=triton_tournament.compete,
    )
    graph_context = GraphContext(model, cache, rows, sampling, ops)
    graphs, chunk_graphs = DecodeGraphs(graph_context), ChunkGraphs(graph_context)
    runner = ModelRunner(model, cache, rows, Sampler(sampling, ops), graphs)
    limits = SchedulerLimits(max_num_seqs=MAX_ROWS, max_num_batched_tokens=256)
    with torch.inference_mode():
        warm_up(runner, 200, limits, config.vocab_size, batch_sizes(config.num_kv_heads))
        at_start = set(asked)
        print(len(at_start))
        for size in graph_sizes(MAX_ROWS):
            inputs = rows.to_device(graphs._sequences([], [], size))
            graphs._sample(inputs, graphs._forward(inputs), filtered=True)
        for decodes in (0, 16, 64):
            for tokens in (64, 128):
                chunk_graphs._forward(chunk_graphs._empty_inputs(decodes, tokens), decodes, tokens)
        rng = random.Random(0)
        for _ in range(60):
            plan = random_plan(rng)
            plan.awaits_masks = any(plan.samples) and rng.random() < 0.5
            launched = runner.launch(plan)
            if plan.awaits_masks:
                places = list(range(rng.randint(0, sum(plan.samples))))
                masks = np.full((len(places), -(-config.vocab_size // 32)), -1, dtype=np.int32)
                runner.choose(launched, TokenMasks(places, masks))
    print(*sorted(asked - at_start), sep="\n")


if __name__ == "__main__":
    main()
