"""CUDA graphs of whole steps: input preparation, forward pass, LM head and sampling, one replay a step.

Owns what every captured step shares (GraphContext), and the graphs of steps that only decode: every batch size up to
32, then steps fine enough that padding costs little. The host sends two numbers per sequence (row, position);
everything else is read from the device-resident RowState and SamplingState. Padding rows point at RowState's scratch
row: they write to no KV slot and have length 0. Steps with prefill chunks are in chunk_graphs.py.

Graphs share one memory pool and are captured from the largest to the smallest, so that the pool is as large as the
largest needs. Outputs live in that pool, where the next replay overwrites them: they are consumed on the stream before.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engines.native.kv_cache import KVCache
from engines.native.models import CausalLM
from engines.native.row_state import RowState, metadata_of
from engines.native.sampling import state as columns
from engines.native.sampling.ops import SamplingOps
from engines.native.sampling.state import SamplingState
from engines.native.sampling.vocab_split import VocabSplit


def graph_sizes(max_num_seqs: int) -> list[int]:
    """Batch sizes to capture: 1 to 32 each, then steps of 8 to 256 and of 16 beyond, and the maximum itself."""
    sizes = {*range(1, 33), *range(40, 257, 8), *range(272, max_num_seqs + 1, 16), max_num_seqs}
    return sorted(size for size in sizes if size <= max_num_seqs)


@dataclass(frozen=True, slots=True)
class StepGraph:
    """One size's graphs. `sample` is apart from `forward` so that rows with penalties and the like can be sampled by
    the general sampler from the same logits."""

    inputs: Tensor  # int64, written before each replay
    forward: torch.cuda.CUDAGraph
    sample: torch.cuda.CUDAGraph
    token_ids: Tensor  # [num_sequences] int64
    logits: Tensor  # [num_sequences, vocab], of several ranks each its own tokens'
    filtered: tuple[torch.cuda.CUDAGraph, Tensor] | None  # of several ranks: `sample` and `token_ids` where rows have
    # top-k, top-p or min-p, which need all ranks' logits; `sample` then compares the ranks' best tokens only

    def draw(self, *, filtered: bool) -> Tensor:
        """Launch the sampling of the logits that `forward` left. Returns token_ids."""
        sample, token_ids = self.filtered if filtered and self.filtered is not None else (self.sample, self.token_ids)
        sample.replay()
        return token_ids

    def seconds(self) -> float:
        """Of one forward pass, by trying. Of several ranks all have to."""
        self.forward.replay()
        torch.cuda.synchronize()
        started = time.perf_counter()
        self.forward.replay()
        torch.cuda.synchronize()
        return time.perf_counter() - started


@dataclass(frozen=True, slots=True)
class GraphContext:
    """What captured steps compute with, and the memory pool that they share."""

    model: CausalLM
    cache: KVCache
    rows: RowState
    sampling: SamplingState
    ops: SamplingOps
    split: VocabSplit | None = None  # of several ranks
    pool: Any = field(default_factory=lambda: torch.cuda.graph_pool_handle())

    def capture(
        self, inputs: Tensor, forward: Callable[[Tensor], Tensor], sample: Callable[[Tensor, Tensor, bool], Tensor]
    ) -> StepGraph:
        """`forward(inputs)` gives logits, `sample(inputs, logits, filtered)` token ids, see `choose`. All run once
        outside the capture, to compile kernels and allocate what outlives a step."""
        ways = [True] if self.split is None else [False, True]
        logits = forward(inputs)
        for filtered in ways:
            sample(inputs, logits, filtered)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            logits = forward(inputs)
        samplers: list[tuple[torch.cuda.CUDAGraph, Tensor]] = []
        for filtered in ways:
            sampler = torch.cuda.CUDAGraph()
            with torch.cuda.graph(sampler, pool=self.pool):
                token_ids = sample(inputs, logits, filtered)
            samplers.append((sampler, token_ids))
        other = samplers[1] if len(samplers) > 1 else None
        return StepGraph(inputs, graph, *samplers[0], logits=_borrowed(logits), filtered=other)

    def choose(self, logits: Tensor, rows: Tensor, lengths: Tensor, store_rows: Tensor, filtered: bool) -> Tensor:
        """A token for each row of logits, by the parameters of `rows`, stored at `lengths` of `store_rows`.

        Without `filtered` no row has top-k, top-p or min-p, which matters where each rank has its own logits.
        """
        floats, ints = self.sampling.floats[:, rows], self.sampling.ints[:, rows]
        if self.split is not None and not filtered:
            token_ids = self.split.choose(logits, floats[columns.TEMPERATURE], ints[columns.SEED], lengths)
            self.rows.store(store_rows, lengths, token_ids)
            return token_ids
        if self.split is not None:
            logits = self.split.whole(logits)
        token_ids = self.ops.sample_core(
            logits,
            floats[columns.TEMPERATURE],
            ints[columns.TOP_K],
            floats[columns.TOP_P],
            floats[columns.MIN_P],
            ints[columns.SEED],
            lengths,
        )
        if self.split is not None:
            self.split.agree(token_ids)
        self.rows.store(store_rows, lengths, token_ids)
        return token_ids


class _Memory:
    """What a tensor occupies, in the form that numpy's and torch's CUDA array interface (version 3) reads."""

    def __init__(self, tensor: Tensor) -> None:
        self.__cuda_array_interface__ = {
            "data": (tensor.data_ptr(), False),
            "shape": tuple(tensor.shape),
            "typestr": "<f4",
            "version": 3,
        }


def _borrowed(logits: Tensor) -> Tensor:
    """The same float32 memory without owning it, so that the graphs captured next may use it too.

    Owned, the logits of all batch sizes together take gigabytes; they are needed from a replay to its sampling only.
    """
    assert logits.dtype is torch.float32
    assert logits.is_contiguous()
    return torch.as_tensor(_Memory(logits), device=logits.device)


class DecodeGraphs:
    """Captured once at start-up; `replay` runs one decode step."""

    def __init__(self, context: GraphContext) -> None:
        self._context = context
        self._graphs: dict[int, StepGraph] = {}
        self._sizes: list[int] = []
        self.token_s = 0.0  # what a step of the smallest size takes: of a sequence that decodes alone

    def capture(self, sizes: list[int]) -> None:
        """`sizes` ascending."""
        self._sizes = sizes
        with torch.inference_mode():
            for size in reversed(sizes):
                inputs = self._context.rows.to_device(self._sequences([], [], size))
                self._graphs[size] = self._context.capture(inputs, self._forward, self._sample)
            self.token_s = self._graphs[sizes[0]].seconds()

    @property
    def max_size(self) -> int:
        return self._sizes[-1] if self._sizes else 0

    def replay(self, rows: list[int], positions: list[int]) -> StepGraph:
        """Launch one step's forward pass for sequences in `rows`, whose last tokens sit at `positions`."""
        size = self._sizes[bisect_left(self._sizes, len(rows))]
        graph = self._graphs[size]
        graph.inputs.copy_(self._context.rows.to_device(self._sequences(rows, positions, size)))
        graph.forward.replay()
        return graph

    def _sequences(self, rows: list[int], positions: list[int], size: int) -> np.ndarray:
        """[3, size]: rows, positions, lengths with what is sampled at them. Padding never stores at position 0, which
        it reads: its samples need not be token ids."""
        table = np.zeros((3, size), dtype=np.int64)
        table[0] = self._context.rows.scratch_row
        table[0, : len(rows)] = rows
        table[1, : len(rows)] = positions
        table[2] = table[1] + 1
        return table

    def _forward(self, inputs: Tensor) -> Tensor:
        """inputs: see `_sequences`."""
        state, model, size = self._context.rows, self._context.model, inputs.shape[1]
        step = state.read(inputs, size, size)
        metadata = metadata_of(step, size, size, 1, state.max_model_len)
        return model.compute_logits(model.forward(step.input_ids, step.positions, self._context.cache.layers, metadata))

    def _sample(self, inputs: Tensor, logits: Tensor, filtered: bool) -> Tensor:
        rows, _, lengths = inputs
        return self._context.choose(logits, rows, lengths, rows, filtered)
