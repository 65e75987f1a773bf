"""CUDA graphs of steps with prefill chunks: some decodes, and up to a few thousand tokens of prompts beside them.

Launching a step kernel by kernel costs the host several milliseconds, more than the device needs for a few hundred
tokens of a large model or a few thousand of a small one. A graph of fixed size costs its padding instead: `worth`
weighs the two by what was measured while capturing.

A graph has places for decodes, for chunk sequences and for chunk tokens. Decodes come first, then the chunks' tokens
end to end. The host sends four numbers per sequence; which token belongs to which sequence is found on the device.
Unused places hold the scratch row: no tokens, no KV slot, no sample. The last chunk sequence owns the padding tokens,
which attention never sees.
"""

from __future__ import annotations

import time
from bisect import bisect_left

import numpy as np
import torch
from torch import Tensor

from engines.native.cuda_graphs import GraphContext, StepGraph
from engines.native.layers.attention_metadata import AttentionMetadata
from engines.native.types import BatchPlan

TOKENS = (64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
"""Places for chunk tokens."""
DECODES = (0, 16, 64, 128, 256, 512)
"""Places for decodes."""
_TOKENS_PER_SEQUENCE = 32  # a graph for T tokens has places for T / 32 chunk sequences, and one for padding


class ChunkGraphs:
    """Captured once at start-up; `replay` runs one step that `find` has a graph for."""

    def __init__(self, context: GraphContext) -> None:
        self._context = context
        self._graphs: dict[tuple[int, int], StepGraph] = {}
        self._tokens: list[int] = []
        self._decodes: list[int] = []
        self._seconds: list[float] = []  # of a replay without decodes, by places for tokens
        self._launch_s = float("inf")  # host time of the same step, launched kernel by kernel: the least seen

    def capture(self, max_num_seqs: int, max_tokens: int) -> None:
        """Sizes that steps of at most max_num_seqs decodes and max_tokens tokens in all can use, and only those that
        are faster replayed than launched."""
        self._decodes = [size for size in DECODES if size < max_num_seqs] + [max_num_seqs]
        with torch.inference_mode():
            for tokens in (size for size in TOKENS if size <= max_tokens):
                graph = self._graphs[0, tokens] = self._capture_one(0, tokens)
                seconds, launch_s = self._measure(graph, tokens)
                self._launch_s = min(self._launch_s, launch_s)
                self._tokens.append(tokens)
                self._seconds.append(seconds)
                if seconds > self._launch_s:
                    break
            for tokens in reversed(self._tokens):
                for decodes in reversed(self._decodes[1:]):
                    if decodes + tokens <= max_tokens:
                        self._graphs[decodes, tokens] = self._capture_one(decodes, tokens)
        torch.cuda.synchronize()

    def capture_largest(self, max_tokens: int) -> None:
        """The size that takes the most memory, to measure it."""
        sizes = [size for size in TOKENS if size <= max_tokens]
        if sizes:
            with torch.inference_mode():
                self._graphs[0, sizes[-1]] = self._capture_one(0, sizes[-1])

    @property
    def tokens(self) -> list[int]:
        """Places for chunk tokens, ascending, that some graph has."""
        return self._tokens

    @property
    def largest_chunk(self) -> int | None:
        """Tokens beyond which a step is better cut than launched kernel by kernel; None where launching is faster."""
        return self._tokens[-1] if self._tokens and self._seconds[-1] <= self._launch_s else None

    def find(self, plan: BatchPlan) -> tuple[int, int] | None:
        """The places (decodes, tokens) of the graph that should run this plan, None where none should."""
        num_tokens = sum(plan.num_tokens[plan.num_decodes :])
        num_chunks = len(plan.rows) - plan.num_decodes
        at = bisect_left(self._tokens, max(num_tokens, num_chunks * _TOKENS_PER_SEQUENCE))
        of_decodes = bisect_left(self._decodes, plan.num_decodes)
        if at == len(self._tokens) or of_decodes == len(self._decodes) or not self._worth(at, num_tokens):
            return None
        places = self._decodes[of_decodes], self._tokens[at]
        return places if places in self._graphs else None

    def replay(self, plan: BatchPlan, places: tuple[int, int]) -> tuple[StepGraph, list[int]]:
        """Launch one step's forward pass. Also returns, for each sequence that samples, its place in the logits."""
        decodes, tokens = places
        graph = self._graphs[places]
        scratch, cut = self._context.rows.scratch_row, plan.num_decodes
        table = np.zeros((4, decodes + _num_chunks(tokens)), dtype=np.int64)
        table[0] = table[3] = scratch
        filled = [*range(cut), *range(decodes, decodes + len(plan.rows) - cut)]
        table[0, filled] = plan.rows
        table[1, filled] = plan.starts
        table[2, filled] = plan.num_tokens
        table[2, -1] = tokens - sum(plan.num_tokens[cut:])
        sampled = [place for place, samples in zip(filled, plan.samples, strict=True) if samples]
        table[3, sampled] = table[0, sampled]
        graph.inputs.copy_(self._context.rows.to_device(table))
        graph.forward.replay()
        return graph, sampled

    def _worth(self, at: int, num_tokens: int) -> bool:
        """Whether the padding up to self._tokens[at] costs less than launching kernel by kernel does."""
        seconds = self._seconds[at]
        exact_s = seconds * num_tokens / self._tokens[at]
        return seconds <= max(self._launch_s, exact_s)

    def _capture_one(self, decodes: int, tokens: int) -> StepGraph:
        def forward(inputs: Tensor) -> Tensor:
            return self._forward(inputs, decodes, tokens)

        def sample(inputs: Tensor, logits: Tensor, filtered: bool) -> Tensor:
            rows, starts, counts, store_rows = inputs[:, :-1]
            # Never to position 0, which padding reads: what unused places sample need not be a token id.
            return self._context.choose(logits, rows, (starts + counts).clamp(min=1), store_rows, filtered)

        return self._context.capture(self._empty_inputs(decodes, tokens), forward, sample)

    def _empty_inputs(self, decodes: int, tokens: int) -> Tensor:
        inputs = torch.zeros((4, decodes + _num_chunks(tokens)), dtype=torch.int64, device=self._context.rows.device)
        inputs[0] = inputs[3] = self._context.rows.scratch_row
        inputs[2, -1] = tokens
        return inputs

    def _measure(self, graph: StepGraph, tokens: int) -> tuple[float, float]:
        """Seconds of a replay on the device, and of a launch kernel by kernel on the host."""
        graph.forward.replay()
        torch.cuda.synchronize()
        started = time.perf_counter()
        graph.forward.replay()
        torch.cuda.synchronize()
        replayed = time.perf_counter()
        self._forward(self._empty_inputs(0, tokens), 0, tokens)
        launched = time.perf_counter()
        torch.cuda.synchronize()
        seconds, launch_s = replayed - started, launched - replayed
        if self._context.split is not None:  # ranks that chose differently would wait for each other for ever
            seconds, launch_s = self._context.split.agree_on((seconds, launch_s))
        return seconds, launch_s

    def _forward(self, inputs: Tensor, decodes: int, tokens: int) -> Tensor:
        """inputs [4, decodes + chunk sequences]: rows, first positions, token counts, rows to store samples in."""
        rows, starts, counts, _ = inputs
        state, model = self._context.rows, self._context.model
        at = torch.arange(decodes + tokens, device=state.device)
        ends = counts[decodes:].cumsum(0)
        sequence_of = torch.cat((at[:decodes], decodes + torch.searchsorted(ends, at[:tokens], right=True)))
        query_starts = torch.cat((at[:decodes], decodes + ends - counts[decodes:]))
        is_padding = rows == state.scratch_row
        pads = is_padding[sequence_of]
        positions = ((starts - query_starts)[sequence_of] + at).masked_fill(pads, 0)
        token_rows = rows[sequence_of]
        slots = state.block_tables[token_rows, positions // state.block_size] * state.block_size
        metadata = AttentionMetadata(
            query_start_loc=query_starts.int(),
            seq_lens=(starts + counts).masked_fill(is_padding, 0)[:-1].int(),
            block_tables=state.block_tables[rows[:-1]],
            slot_mapping=(slots + positions % state.block_size).masked_fill(pads, -1),
            num_decodes=decodes,
            max_query_len=tokens,
            max_seq_len=state.max_model_len,
        )
        input_ids = state.token_table[token_rows, positions].long()
        hidden = model.forward(input_ids, positions, self._context.cache.layers, metadata)
        last = (query_starts + counts - 1)[:-1].clamp(0, decodes + tokens - 1)
        return model.compute_logits(hidden[last])


def _num_chunks(tokens: int) -> int:
    """Chunk sequences of a graph, the padding's included."""
    return max(1, tokens // _TOKENS_PER_SEQUENCE) + 1
