"""CUDA graphs of whole decode steps: input preparation, forward pass, LM head and sampling, one replay a step.

One graph per batch size: every size up to 32, then steps fine enough that padding costs little. The host sends two
numbers per sequence (row, position); everything else is read from the device-resident RowState and SamplingState.
Padding rows point at RowState's scratch row: they write to no KV slot and have length 0.

Graphs share one memory pool and are captured from the largest to the smallest, so that the pool is as large as the
largest needs. Outputs live in that pool: they are consumed on the stream before the next replay.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import Tensor

from engines.native.kv_cache import KVCache
from engines.native.layers.attention_metadata import AttentionMetadata
from engines.native.models import CausalLM
from engines.native.row_state import RowState
from engines.native.sampling import state as columns
from engines.native.sampling.ops import SamplingOps
from engines.native.sampling.state import SamplingState


def graph_sizes(max_num_seqs: int) -> list[int]:
    """Batch sizes to capture: 1 to 32 each, then steps of 8 to 256 and of 16 beyond, and the maximum itself."""
    sizes = {*range(1, 33), *range(40, 257, 8), *range(272, max_num_seqs + 1, 16), max_num_seqs}
    return sorted(size for size in sizes if size <= max_num_seqs)


@dataclass(frozen=True, slots=True)
class DecodeGraph:
    """One size's graphs. `sample` is apart from `forward` so that rows with penalties and the like can be sampled by
    the general sampler from the same logits."""

    inputs: Tensor  # [2, size] int64: rows, positions
    forward: torch.cuda.CUDAGraph
    sample: torch.cuda.CUDAGraph
    logits: Tensor  # [size, vocab]
    token_ids: Tensor  # [size] int64


class DecodeGraphs:
    """Captured once at start-up; `replay` runs one decode step."""

    def __init__(
        self, model: CausalLM, cache: KVCache, rows: RowState, sampling: SamplingState, ops: SamplingOps
    ) -> None:
        self._model = model
        self._cache = cache
        self._rows = rows
        self._sampling = sampling
        self._ops = ops
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[int, DecodeGraph] = {}
        self._sizes: list[int] = []

    def capture(self, sizes: list[int]) -> None:
        """`sizes` ascending. Kernels are compiled by one eager run of each size's shape class before."""
        self._sizes = sizes
        with torch.inference_mode():
            for size in reversed(sizes):
                self._graphs[size] = self._capture_one(size)
        torch.cuda.synchronize()

    @property
    def max_size(self) -> int:
        return self._sizes[-1] if self._sizes else 0

    def replay(self, rows: list[int], positions: list[int]) -> DecodeGraph:
        """Launch one step's forward pass for sequences in `rows`, whose last tokens sit at `positions`."""
        size = self._sizes[bisect_left(self._sizes, len(rows))]
        graph = self._graphs[size]
        padding = size - len(rows)
        host = self._rows.to_device([rows + [self._rows.scratch_row] * padding, positions + [0] * padding])
        graph.inputs.copy_(host)
        graph.forward.replay()
        return graph

    def _capture_one(self, size: int) -> DecodeGraph:
        inputs = torch.empty((2, size), dtype=torch.int64, device=self._rows.device)
        inputs[0] = self._rows.scratch_row
        inputs[1] = 0
        self._sample(inputs, self._forward(inputs))  # compiles and allocates outside the capture
        torch.cuda.synchronize()
        forward, sample = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(forward, pool=self._pool):
            logits = self._forward(inputs)
        with torch.cuda.graph(sample, pool=self._pool):
            token_ids = self._sample(inputs, logits)
        return DecodeGraph(inputs, forward, sample, logits, token_ids)

    def _forward(self, inputs: Tensor) -> Tensor:
        rows, positions = inputs
        state = self._rows
        is_padding = rows == state.scratch_row
        block_tables = state.block_tables[rows]
        blocks = block_tables.gather(1, (positions // state.block_size).unsqueeze(1)).squeeze(1)
        slots = blocks * state.block_size + positions % state.block_size
        metadata = AttentionMetadata(
            query_start_loc=torch.arange(len(rows) + 1, dtype=torch.int32, device=state.device),
            seq_lens=(positions + 1).masked_fill(is_padding, 0).int(),
            block_tables=block_tables,
            slot_mapping=slots.masked_fill(is_padding, -1),
            num_decodes=len(rows),
            max_query_len=1,
            max_seq_len=state.max_model_len,
        )
        input_ids = state.token_table[rows, positions].long()
        hidden = self._model.forward(input_ids, positions, self._cache.layers, metadata)
        return self._model.compute_logits(hidden)

    def _sample(self, inputs: Tensor, logits: Tensor) -> Tensor:
        rows, positions = inputs
        floats, ints = self._sampling.floats[:, rows], self._sampling.ints[:, rows]
        token_ids = self._ops.sample_core(
            logits,
            floats[columns.TEMPERATURE],
            ints[columns.TOP_K],
            floats[columns.TOP_P],
            floats[columns.MIN_P],
            ints[columns.SEED],
            positions + 1,
        )
        self._rows.store(rows, positions + 1, token_ids)
        return token_ids
