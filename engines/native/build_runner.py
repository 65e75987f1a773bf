"""Builds what computes, once the model is loaded: KV cache, rows, sampler, graphs, all compiled and warm.

On a GPU the order matters: the largest steps run first, on a cache of one block, and the KV cache then takes what is
left beside them and the graphs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from config.engines import NativeSettings
from engines.native.chunk_graphs import ChunkGraphs
from engines.native.cuda_graphs import DecodeGraphs, GraphContext, graph_sizes
from engines.native.gpu_memory import explain_out_of_memory, forget_peak, gpu_budget_bytes, graph_bytes, workspace_bytes
from engines.native.kernels import KernelChoice
from engines.native.kv_cache import (
    KVCache,
    KVCacheShape,
    blocks_for,
    cpu_budget_bytes,
    fit_max_model_len,
    parse_bytes,
)
from engines.native.model_runner import ModelRunner
from engines.native.models import CausalLM
from engines.native.models.model_config import ModelConfig
from engines.native.row_state import RowState
from engines.native.sampling.ops import sampling_ops
from engines.native.sampling.sampler import Sampler
from engines.native.sampling.state import SamplingState
from engines.native.sampling.vocab_split import VocabSplit
from engines.native.scheduler import SchedulerLimits
from engines.native.warm_up import sample_widest, warm_up, warm_up_embedding

if TYPE_CHECKING:
    from engines.native.distributed.group import RankGroup

_CPU_WARM_UP_TOKENS = 32


def build_runner(
    section: NativeSettings,
    config: ModelConfig,
    device: torch.device,
    kernels: KernelChoice,
    limits: SchedulerLimits,
    model: CausalLM,
    group: RankGroup | None = None,
) -> tuple[ModelRunner, KVCache, RowState]:
    """The runner, and what it computes on; with a `group`, this rank's. Raises EngineUnavailable for want of memory."""
    heads = slice(0, config.num_kv_heads) if group is None else group.shard.take(config.num_kv_heads, "KV heads")
    shape = KVCacheShape(
        num_layers=config.num_layers,
        num_kv_heads=heads.stop - heads.start,
        head_dim=config.head_dim,
        block_size=kernels.block_size,
        dtype=kernels.kv_dtype,
    )
    longest_context = min(section.max_model_len or config.context_length, config.context_length)
    ops = sampling_ops(device)
    split = None if group is None else VocabSplit(group, config.vocab_size, ops)
    sampler = Sampler(SamplingState(limits.max_num_seqs + 1, config.vocab_size, device), ops, split)

    def rows_of(max_model_len: int) -> RowState:
        return RowState(limits.max_num_seqs, max_model_len, kernels.block_size, device)

    def sized(budget_bytes: int) -> tuple[KVCache, int]:
        num_blocks = blocks_for(budget_bytes, shape, limits.max_num_seqs * longest_context)
        if group is not None:
            num_blocks = group.minimum(num_blocks)  # a plan's blocks are the same on every rank
        length = fit_max_model_len(section.max_model_len, config.context_length, num_blocks, shape)
        return KVCache(shape, num_blocks, device), length

    def warm(runner: ModelRunner, longest: int, batch_sizes: Sequence[int] = ()) -> None:
        if config.headless:
            warm_up_embedding(runner, longest, batch_sizes)
        else:
            warm_up(runner, longest, limits, config.vocab_size, batch_sizes)

    if device.type == "cpu":
        cache, length = sized(_asked_bytes(section) or cpu_budget_bytes() // section.tensor_parallel_size)
        runner = ModelRunner(model, cache, rows := rows_of(length), sampler)
        # CPU kernels are compiled ahead and allocate little: a short prompt touches all that a long one does.
        short = max(1, min(_CPU_WARM_UP_TOKENS, limits.max_num_batched_tokens, length - 1))
        warm(runner, short)
        return runner, cache, rows

    rows = rows_of(longest_context)
    probe = KVCache(shape, 1, device)  # steps of warming up write to one block, whatever their length
    longest = max(1, min(limits.max_num_batched_tokens, longest_context - 1))
    runner = ModelRunner(model, probe, rows, sampler)
    forget_peak()
    with explain_out_of_memory("max_num_batched_tokens or max_num_seqs"):
        if kernels.compile_ahead is not None:
            with kernels.compile_ahead(os.cpu_count() or 1):
                warm(runner, longest, kernels.batch_sizes)
        warm(runner, longest, kernels.batch_sizes)
        if not config.headless:
            sample_widest(runner, limits)
        reserve = workspace_bytes()
        # Not with torch's attention, which asks the device for lengths, as no graph can; nor where nothing decodes.
        use_graphs = kernels.attention_backend != "torch" and not config.headless
        if use_graphs:
            reserve += graph_bytes(GraphContext(model, probe, rows, sampler.state, ops, split), limits)
    cache, length = sized(_asked_bytes(section) or gpu_budget_bytes(section.gpu_memory_utilization, device, reserve))
    if length != rows.max_model_len:
        rows = rows_of(length)
    if not use_graphs:
        return ModelRunner(model, cache, rows, sampler), cache, rows
    graph_context = GraphContext(model, cache, rows, sampler.state, ops, split)
    decode_graphs, chunk_graphs = DecodeGraphs(graph_context), ChunkGraphs(graph_context)
    with explain_out_of_memory("gpu_memory_utilization or kv_cache_memory"):
        decode_graphs.capture(graph_sizes(limits.max_num_seqs))
        chunk_graphs.capture(limits.max_num_seqs, min(limits.max_num_batched_tokens, length))
    return ModelRunner(model, cache, rows, sampler, decode_graphs, chunk_graphs), cache, rows


def _asked_bytes(section: NativeSettings) -> int:
    return 0 if section.kv_cache_memory == "auto" else parse_bytes(section.kv_cache_memory)
