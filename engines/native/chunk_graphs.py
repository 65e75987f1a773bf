"""CUDA graphs of steps with prefill chunks: some decodes, and up to a few thousand tokens of prompts beside them.

Launching a step kernel by kernel costs the host several milliseconds, more than the device needs for a few hundred
tokens of a large model or a few thousand of a small one. A graph of fixed size costs its padding instead: `_worth`
weighs the two by what was measured while capturing.

A graph has places for decodes, for chunk sequences and for chunk tokens. Decodes come first, then the chunks' tokens
end to end. The host sends five numbers per sequence; which token belongs to which sequence is found on the device.
Unused places hold the scratch row: no tokens, no KV slot, no sample. The last chunk sequence owns the padding tokens,
which attention never sees.
"""

from __future__ import annotations

import time
from bisect import bisect_left

import numpy as np
import torch
from torch import Tensor

from engines.native.chunking import StepSizes
from engines.native.cuda_graphs import GraphContext, StepGraph
from engines.native.row_state import metadata_of
from engines.native.types import BatchPlan

TOTALS = (64, 128, 256, 384, 512, 640, 768, 1024, 1280, 1536, 2048, 3072, 4096)
"""Rows of the step's products: places for decodes and for chunk tokens together. Tiles of products are 64 to 256 rows
high, so that others are padded inside the kernels."""
DECODES = (0, 16, 64, 128, 192, 256, 384, 512)
"""Places for decodes."""
_FEWEST_TOKENS = 32  # beside decodes
_CAPTURED_LAUNCHES = 2.0  # steps of up to so many times what launching takes: the host has other work in a step, too;
# of several ranks of up to twice as many: each waits for the slower one's launches, sum after sum
_SEEN_SHARE = 0.25  # of a launch, that the device waits for though it has as long to compute
_TOKENS_PER_SEQUENCE = 32  # a graph for T tokens has places for T / 32 chunk sequences, and one for padding


class ChunkGraphs:
    """Captured once at start-up; `replay` runs one step that `find` has a graph for."""

    def __init__(self, context: GraphContext) -> None:
        self._context = context
        self._graphs: dict[tuple[int, int], StepGraph] = {}  # by places for decodes and for tokens
        self._totals: list[int] = []
        self._decodes: list[int] = []
        self._seconds: list[float] = []  # of a replay without decodes, by totals
        self._launch_s = float("inf")  # host time of the same step, launched kernel by kernel: the least seen

    def capture(self, max_num_seqs: int, max_tokens: int) -> None:
        """Sizes that steps of at most max_num_seqs decodes and max_tokens tokens in all can use, up to where launching
        is hidden well behind what the device computes."""
        self._decodes = [size for size in DECODES if size < max_num_seqs] + [max_num_seqs]
        launches = _CAPTURED_LAUNCHES * (1 if self._context.split is None else 2)
        with torch.inference_mode():
            for total in (size for size in TOTALS if size <= max_tokens):
                graph = self._graphs[0, total] = self._capture_one(0, total)
                seconds, launch_s = self._measure(graph, total)
                self._launch_s = min(self._launch_s, launch_s)
                self._totals.append(total)
                self._seconds.append(seconds)
                if seconds > launches * self._launch_s:
                    break
            for total in reversed(self._totals):
                for decodes in reversed(self._decodes[1:]):
                    if total - decodes >= _FEWEST_TOKENS:
                        self._graphs[decodes, total - decodes] = self._capture_one(decodes, total - decodes)
        torch.cuda.synchronize()

    def capture_largest(self, max_tokens: int) -> None:
        """The size that takes the most memory, to measure it."""
        sizes = [size for size in TOTALS if size <= max_tokens]
        if sizes:
            with torch.inference_mode():
                self._graphs[0, sizes[-1]] = self._capture_one(0, sizes[-1])

    @property
    def sizes(self) -> StepSizes:
        return StepSizes(self._decodes, self._totals)

    @property
    def largest_chunk(self) -> int | None:
        """Tokens beyond which a step is better cut than launched kernel by kernel; None where launching is faster."""
        return self._totals[-1] if self._totals and self._seconds[-1] <= self._launch_s else None

    def find(self, plan: BatchPlan) -> tuple[int, int] | None:
        """The places (decodes, tokens) of the graph that should run this plan, None where none should."""
        of_decodes = bisect_left(self._decodes, plan.num_decodes)
        if of_decodes == len(self._decodes):
            return None
        decodes = self._decodes[of_decodes]
        num_tokens = sum(plan.num_tokens[plan.num_decodes :])
        num_chunks = len(plan.rows) - plan.num_decodes
        fewest = _FEWEST_TOKENS if decodes else 0
        at = bisect_left(self._totals, decodes + max(num_tokens, num_chunks * _TOKENS_PER_SEQUENCE, fewest))
        if at == len(self._totals) or not self._worth(at, plan.num_decodes + num_tokens):
            return None
        return decodes, self._totals[at] - decodes

    def replay(self, plan: BatchPlan, places: tuple[int, int]) -> tuple[StepGraph, list[int]]:
        """Launch one step's forward pass. Also returns, for each sequence that samples, its place in the logits."""
        decodes, tokens = places
        graph = self._graphs[places]
        cut = plan.num_decodes
        table = self._sequences(decodes, tokens)
        filled = [*range(cut), *range(decodes, decodes + len(plan.rows) - cut)]
        table[0, filled] = plan.rows
        table[1, filled] = plan.starts
        table[2, filled] = plan.num_tokens
        table[2, -1] = tokens - sum(plan.num_tokens[cut:])
        sampled = [place for place, samples in zip(filled, plan.samples, strict=True) if samples]
        table[3, sampled] = table[0, sampled]
        table[4, filled] = table[1, filled] + table[2, filled]
        graph.inputs.copy_(self._context.rows.to_device(table))
        graph.forward.replay()
        return graph, sampled

    def _worth(self, at: int, num_rows: int) -> bool:
        """Whether the padding up to self._totals[at] costs less than launching kernel by kernel does."""
        seconds = self._seconds[at]
        exact_s = seconds * num_rows / self._totals[at]
        return seconds <= max(self._launch_s, exact_s + _SEEN_SHARE * self._launch_s)

    def _capture_one(self, decodes: int, tokens: int) -> StepGraph:
        def forward(inputs: Tensor) -> Tensor:
            return self._forward(inputs, decodes, tokens)

        def sample(inputs: Tensor, logits: Tensor, filtered: bool) -> Tensor:
            rows, _, _, store_rows, lengths = inputs[:, :-1]
            return self._context.choose(logits, rows, lengths, store_rows, filtered)

        return self._context.capture(self._empty_inputs(decodes, tokens), forward, sample)

    def _sequences(self, decodes: int, tokens: int) -> np.ndarray:
        """[5, decodes + chunk sequences], of padding alone: rows, first positions, token counts, rows to store samples
        in, lengths to store them at. Never at 0, which padding reads: what unused places sample need not be a token id.
        """
        table = np.zeros((5, decodes + _num_chunks(tokens)), dtype=np.int64)
        table[0] = table[3] = self._context.rows.scratch_row
        table[2, -1] = tokens
        table[4] = 1
        return table

    def _empty_inputs(self, decodes: int, tokens: int) -> Tensor:
        return self._context.rows.to_device(self._sequences(decodes, tokens))

    def _measure(self, graph: StepGraph, tokens: int) -> tuple[float, float]:
        """Seconds of a replay on the device, and of a launch kernel by kernel on the host."""
        seconds = graph.seconds()
        started = time.perf_counter()
        self._forward(self._empty_inputs(0, tokens), 0, tokens)
        launch_s = time.perf_counter() - started
        torch.cuda.synchronize()
        if self._context.split is not None:  # ranks that chose differently would wait for each other for ever
            seconds, launch_s = self._context.split.agree_on((seconds, launch_s))
        return seconds, launch_s

    def _forward(self, inputs: Tensor, decodes: int, tokens: int) -> Tensor:
        """inputs: see `_sequences`. The last sequence is padding."""
        state, model, num_seqs = self._context.rows, self._context.model, inputs.shape[1] - 1
        step = state.read(inputs, decodes, decodes + tokens)
        metadata = metadata_of(step, num_seqs, decodes, tokens, state.max_model_len)
        last_tokens = step.last_tokens[:num_seqs]
        hidden = model.forward(step.input_ids, step.positions, self._context.cache.layers, metadata, last_tokens)
        return model.compute_logits(hidden)


def _num_chunks(tokens: int) -> int:
    """Chunk sequences of a graph, the padding's included."""
    return max(1, tokens // _TOKENS_PER_SEQUENCE) + 1
