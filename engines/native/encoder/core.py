"""EncoderCore: whole inputs of like length, side by side, in order of arrival. One batch is a step.

Takes the place of EngineCore behind the socket. There is no cache and nothing to come back to, so all there is to
decide is who is computed together. No torch here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as SequenceOf
from itertools import islice
from typing import Protocol

from engines.native.scheduler import Output, SchedulerLimits
from engines.native.sequence import Sequence, SequenceKey
from engines.native.step_recorder import StepRecorder
from engines.native.types import (
    FINISH_STOP,
    AddSequence,
    BatchPlan,
    Pooling,
    SchedulerStats,
    TokenOutput,
)
from engines.step_stats import StepStats

_WINDOW = 4  # batches' worth of waiting sequences among which those of like length are looked for
_MOST_PADDING = 0.5  # of the tokens that a batch computes


class EmbeddingModel(Protocol):
    def embed(self, inputs: SequenceOf[list[int]], poolings: SequenceOf[Pooling]) -> list[bytes]:
        """A vector for each input: little-endian float32."""
        ...


class EncoderCore:
    """See engines.native.core.Core."""

    is_compiling = False

    def __init__(self, model: EmbeddingModel, limits: SchedulerLimits) -> None:
        self._model = model
        self._limits = limits
        self._waiting: dict[SequenceKey, Sequence] = {}  # in order of arrival
        self._prompt_tokens = 0
        self._num_running = 0
        self._recorder = StepRecorder()

    def add(self, client: bytes, message: AddSequence) -> None:
        assert message.params.pooling is not None, "an encoder is asked to generate"
        sequence = Sequence(
            key=(client, message.seq_id),
            token_ids=list(message.prompt_token_ids),
            num_prompt_tokens=len(message.prompt_token_ids),
            params=message.params,
        )
        self._waiting[sequence.key] = sequence

    def abort(self, client: bytes, seq_ids: tuple[int, ...]) -> None:
        for seq_id in seq_ids:
            self._waiting.pop((client, seq_id), None)

    def abort_client(self, client: bytes) -> None:
        for key in [key for key in self._waiting if key[0] == client]:
            del self._waiting[key]

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def stats(self) -> SchedulerStats:
        """`running` is the size of the last batch while others wait behind it."""
        return SchedulerStats(
            running=self._num_running if self._waiting else 0,
            waiting=len(self._waiting),
            prompt_tokens=self._prompt_tokens,
        )

    def step_stats(self) -> StepStats:
        return self._recorder.stats()

    def step(self) -> list[Output]:
        batch = choose_batch(list(islice(self._waiting.values(), _WINDOW * self._limits.max_num_seqs)), self._limits)
        started_at, started = time.monotonic(), time.perf_counter()
        poolings = [sequence.params.pooling or Pooling() for sequence in batch]
        vectors = self._model.embed([sequence.token_ids for sequence in batch], poolings)
        self._recorder.done(BatchPlan(rows=list(range(len(batch)))), time.perf_counter() - started, 0.0)
        self._num_running = len(batch)
        outputs: list[Output] = []
        for sequence, vector in zip(batch, vectors, strict=True):
            del self._waiting[sequence.key]
            self._prompt_tokens += sequence.num_prompt_tokens
            output = TokenOutput(
                sequence.key[1],
                (),
                FINISH_STOP,
                cached_tokens=0,
                queued_s=started_at - sequence.arrived_at,
                embedding=vector,
            )
            outputs.append((sequence, output))
        return outputs


def choose_batch(waiting: SequenceOf[Sequence], limits: SchedulerLimits) -> list[Sequence]:
    """The oldest sequence, which is the first, and those nearest to it in length, as long as they fit.

    All are computed as long as the longest. So many tokens keep to the budget, unless the oldest alone is more, and
    no more of them than a fixed share is padding.
    """
    oldest = waiting[0].num_prompt_tokens
    nearest = sorted(waiting, key=lambda sequence: abs(sequence.num_prompt_tokens - oldest))
    batch: list[Sequence] = []
    longest = total = 0
    for sequence in nearest[: limits.max_num_seqs]:
        longest = max(longest, sequence.num_prompt_tokens)
        total += sequence.num_prompt_tokens
        computed = longest * (len(batch) + 1)
        if batch and (computed > limits.max_num_batched_tokens or total < computed * (1 - _MOST_PADDING)):
            break
        batch.append(sequence)
    return batch
