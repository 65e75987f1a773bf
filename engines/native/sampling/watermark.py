"""Watermarks as passes of the sampler. What each mark means is in torch_watermark.py; where it acts is in sampler.py.

Rows without a mark are not in a pass, and a step without such rows has none.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from torch import Tensor

from engines.native.sampling import state as columns
from engines.native.sampling.batch import SamplingBatch
from engines.native.sampling.ops import SamplingOps
from engines.native.sampling.state import Feature, SamplingState, on_device
from engines.native.sampling.torch_watermark import MarkedRows
from engines.native.types import Watermark


@dataclass(frozen=True, slots=True)
class MarkTokens:
    """Green lists raise logits, Gumbel-max keys the noise of the draw; see torch_watermark.mark_tokens."""

    marked: MarkedRows
    ops: SamplingOps
    feature = Feature.MARKED

    @classmethod
    def build(cls, state: SamplingState, row_list: list[int], at: list[int], ops: SamplingOps) -> Self:
        return cls(marked_rows(state, row_list, at), ops)

    def apply(self, logits: Tensor, batch: SamplingBatch) -> None:
        noise = batch.noise
        noise.seeds, noise.positions = noise.seeds.clone(), noise.positions.clone()
        self.ops.mark_tokens(
            logits, batch.token_table, batch.rows, batch.lengths, self.marked, noise.seeds, noise.positions
        )


@dataclass(frozen=True, slots=True)
class Tournament:
    """SynthID-Text: keeps what the row's min_p, top_k and top_p keep, and lets that compete; the draw is an ordinary
    one, from what comes out. See torch_watermark.compete."""

    marked: MarkedRows
    temperature: Tensor  # [n] float32
    top_k: Tensor  # [n] int64
    top_p: Tensor  # [n] float32
    min_p: Tensor  # [n] float32
    depths: Tensor  # [n] int64
    is_filtered: bool
    num_layers: int
    ops: SamplingOps
    feature = Feature.TOURNAMENT

    @classmethod
    def build(cls, state: SamplingState, row_list: list[int], at: list[int], ops: SamplingOps) -> Self:
        rows = on_device(np.array([row_list[i] for i in at], dtype=np.int64), state.device)
        floats, ints = state.floats[:, rows], state.ints[:, rows]
        depths = [_watermark(state, row_list[i]).depth for i in at]
        filters = Feature.TOP_K | Feature.TOP_P | Feature.MIN_P
        return cls(
            marked_rows(state, row_list, at),
            floats[columns.TEMPERATURE],
            ints[columns.TOP_K],
            floats[columns.TOP_P],
            floats[columns.MIN_P],
            on_device(np.array(depths, dtype=np.int64), state.device),
            any(state.features[row_list[i]] & filters for i in at),
            max(depths),
            ops,
        )

    def apply(self, logits: Tensor, batch: SamplingBatch) -> None:
        marked = self.marked
        if self.is_filtered:
            self.ops.mask_filtered(logits, marked.at, self.temperature, self.top_k, self.top_p, self.min_p)
        keys, is_fresh = self.ops.fresh_contexts(batch.token_table, batch.rows, batch.lengths, marked)
        self.ops.compete(logits, marked.at, keys, is_fresh, self.temperature, self.depths, self.num_layers)


def marked_rows(state: SamplingState, row_list: list[int], at: list[int]) -> MarkedRows:
    """The rows at batch positions `at`, which all have a watermark."""
    watermarks = [_watermark(state, row_list[i]) for i in at]
    ints = np.array(
        [
            (
                i,
                watermark.scheme,
                (watermark.key + 2**63) % 2**64 - 2**63,
                watermark.context_width,
                state.num_prompt_tokens(row_list[i]),
                watermark.threshold,
            )
            for i, watermark in zip(at, watermarks, strict=True)
        ],
        dtype=np.int64,
    )
    deltas = np.array([watermark.delta for watermark in watermarks], dtype=np.float32)
    return MarkedRows(
        on_device(np.ascontiguousarray(ints.T), state.device),
        on_device(deltas, state.device),
        [watermark.scheme for watermark in watermarks],
        max(watermark.context_width for watermark in watermarks),
    )


def _watermark(state: SamplingState, row: int) -> Watermark:
    watermark = state.params(row).watermark
    assert watermark is not None, f"row {row} has no watermark"
    return watermark
