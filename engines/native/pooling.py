"""From hidden states to embeddings: pooled over a sequence's tokens, cut, scaled to length 1, and on to the host.

`ChunkPooling` does it for a decoder, whose prompts come in chunks; `pooled` for whole inputs side by side. All sums are
float32. Knows nothing of requests and models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engines.native.staging import HostCopy
from engines.native.types import CLS_TOKEN, LAST_TOKEN, MAX_TOKENS, MEAN_TOKENS, Admission, BatchPlan, Pooling


class HostVectors:
    """Vectors on their way to the host.

    vectors: [n, size] float32, as pooled. What `poolings` ask to be done with each is done here.
    """

    def __init__(self, vectors: Tensor, poolings: Sequence[Pooling]) -> None:
        self._widths = [pooling.dimensions or vectors.shape[1] for pooling in poolings]
        self._copy = HostCopy(_finish(vectors, poolings, self._widths))

    def to_bytes(self) -> list[bytes]:
        """Each as little-endian float32."""
        rows = self._copy.wait().numpy().astype("<f4", copy=False)
        return [row[:width].tobytes() for row, width in zip(rows, self._widths, strict=True)]


def _finish(vectors: Tensor, poolings: Sequence[Pooling], widths: Sequence[int]) -> Tensor:
    """Cut by zeroing what lies beyond the width, which also leaves it out of the length."""
    size = vectors.shape[1]
    if any(width < size for width in widths):
        kept = torch.arange(size, device=vectors.device) < _column(widths, vectors)
        vectors = vectors.masked_fill(~kept, 0.0)
    scaled = [pooling.normalized or pooling.dimensions > 0 for pooling in poolings]
    lengths = vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return vectors / torch.where(_column(scaled, vectors).bool(), lengths, 1.0)


def _column(numbers: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(numbers, device=like.device)[:, None]


def pooled(hidden: Tensor, lengths: Tensor, mode: int) -> Tensor:
    """[n, size] float32 of hidden states [n, longest, size]; row i's first lengths[i] ([n] int64) count."""
    if mode == CLS_TOKEN:
        return hidden[:, 0].float()
    if mode == LAST_TOKEN:
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1].float()
    counts = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
    if mode == MAX_TOKENS:
        return hidden.float().masked_fill(~counts[:, :, None], float("-inf")).amax(1)
    return (hidden.float() * counts[:, :, None]).sum(1) / lengths[:, None]


@dataclass(slots=True)
class _Row:
    """A sequence that is pooled, and what its chunks have brought so far ([size] float32; None: nothing yet)."""

    pooling: Pooling
    num_tokens: int
    so_far: Tensor | None = None

    def add(self, states: Tensor) -> None:
        """states: [tokens, size], the next ones."""
        mode, before = self.pooling.mode, self.so_far
        if mode == MEAN_TOKENS:
            new = states.float().sum(0)
            self.so_far = new if before is None else before + new
        elif mode == MAX_TOKENS:
            new = states.float().amax(0)
            self.so_far = new if before is None else torch.maximum(before, new)
        elif mode == LAST_TOKEN:
            self.so_far = states[-1].float()
        elif before is None:
            self.so_far = states[0].float()

    def result(self) -> Tensor:
        assert self.so_far is not None
        return self.so_far / self.num_tokens if self.pooling.mode == MEAN_TOKENS else self.so_far


class ChunkPooling:
    """Of the runner's rows, those whose prompts become vectors."""

    def __init__(self) -> None:
        self._rows: dict[int, _Row] = {}

    def admit(self, admission: Admission) -> None:
        """Whoever was in this row before has left it."""
        self._rows.pop(admission.row, None)
        if admission.params.pooling is not None:
            self._rows[admission.row] = _Row(admission.params.pooling, admission.num_prompt_tokens)

    def concerns(self, plan: BatchPlan) -> bool:
        """Whether the hidden states of this step are wanted."""
        return bool(self._rows) and any(row in self._rows for row in plan.rows[plan.num_decodes :])

    def take(self, plan: BatchPlan, hidden: Tensor) -> Embedded | None:
        """This step's hidden states, [num_tokens, size], and the vectors that they complete."""
        if not self._rows:
            return None
        places: list[int] = []
        done: list[_Row] = []
        end = plan.num_decodes  # which are one token each, and never of these rows
        for place in range(plan.num_decodes, len(plan.rows)):
            number, start, count = plan.rows[place], plan.starts[place], plan.num_tokens[place]
            begin, end = end, end + count
            row = self._rows.get(number)
            if row is None:
                continue
            row.add(hidden[begin:end])
            if start + count == row.num_tokens:
                places.append(place)
                done.append(self._rows.pop(number))
        if not done:
            return None
        vectors = HostVectors(torch.stack([row.result() for row in done]), [row.pooling for row in done])
        return Embedded(places, vectors)


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors that a step completed, and the places in its plan of their sequences."""

    places: list[int]
    vectors: HostVectors

    def by_place(self) -> dict[int, bytes]:
        return dict(zip(self.places, self.vectors.to_bytes(), strict=True))
