"""EngineCore: the loop that everything serves. Decide, do, record.

Knows the scheduler and a Runner; knows nothing of tensors, sockets or text. `step` is the whole engine in three lines;
`step_overlapped` is its fast twin, which lets the device work on one step while the host records the one before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from engines.native.chunking import ChunkSizer
from engines.native.grammar.constraint import Constraints, GrammarError, TokenConstraint, TokenMasks
from engines.native.scheduler import Output, Scheduler
from engines.native.sequence import Sequence, SequenceKey
from engines.native.step_recorder import StepRecorder
from engines.native.types import (
    FINISH_REFUSED,
    AddSequence,
    BatchPlan,
    SampledTokens,
    SchedulerStats,
    TokenOutput,
)
from engines.step_stats import StepStats


class Runner(Protocol):
    """Does what a plan says. `launch` returns at once where the device works by itself; `collect` waits for its tokens.

    Steps are launched and collected in the same order. A launched step sees the tokens of every step launched before
    it. Of a plan that awaits masks, `launch` computes everything but the tokens; `choose` follows, before the next
    launch.
    """

    def launch(self, plan: BatchPlan) -> Any: ...

    def choose(self, launched: Any, masks: TokenMasks) -> None: ...

    def collect(self, launched: Any) -> SampledTokens: ...


class Core(Protocol):
    """What stands behind the socket: sequences in by `add`, and what a step brought for each out of it."""

    def add(self, client: bytes, message: AddSequence) -> None: ...

    def abort(self, client: bytes, seq_ids: tuple[int, ...]) -> None: ...

    def abort_client(self, client: bytes) -> None: ...

    @property
    def has_work(self) -> bool: ...

    @property
    def is_compiling(self) -> bool: ...

    @property
    def num_waiting(self) -> int: ...

    def stats(self) -> SchedulerStats: ...

    def step_stats(self) -> StepStats: ...


class EngineCore:
    """Sequences in, TokenOutputs out, one step at a time."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        sizer: ChunkSizer | None = None,
        clock: Callable[[], float] = time.perf_counter,
        constraints: Constraints | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._sizer = sizer or ChunkSizer(0.0)
        self._clock = clock
        self._launched: _Launched | None = None
        self._constraints = constraints
        self._compiling: dict[SequenceKey, tuple[Sequence, Future[TokenConstraint]]] = {}
        self._collected_s = 0.0  # when the last step's tokens arrived
        self._steps = StepRecorder()

    def add(self, client: bytes, message: AddSequence) -> None:
        """Queue a sequence; one with a constraint when that is made, which holds up nobody else."""
        sequence = Sequence(
            key=(client, message.seq_id),
            token_ids=list(message.prompt_token_ids),
            num_prompt_tokens=len(message.prompt_token_ids),
            params=message.params,
            salt=message.cache_salt,
            priority=message.priority,
        )
        if message.grammar is None and message.thinking is None:
            self._scheduler.add(sequence)
        else:
            assert self._constraints is not None, "this core was built without grammars"
            future = self._constraints.request(message.grammar, message.thinking)
            self._compiling[sequence.key] = (sequence, future)

    def abort(self, client: bytes, seq_ids: tuple[int, ...]) -> None:
        for seq_id in seq_ids:
            self._compiling.pop((client, seq_id), None)
            self._scheduler.abort((client, seq_id))

    def abort_client(self, client: bytes) -> None:
        for key in [key for key in self._compiling if key[0] == client]:
            del self._compiling[key]
        self._scheduler.abort_client(client)

    @property
    def has_work(self) -> bool:
        """Whether a step would do something now; a grammar that is being compiled is nothing yet."""
        return (
            self._scheduler.has_work
            or self._launched is not None
            or (self.is_compiling and any(compiled.done() for _, compiled in self._compiling.values()))
        )

    @property
    def is_compiling(self) -> bool:
        return bool(self._compiling)

    @property
    def num_waiting(self) -> int:
        return self._scheduler.num_waiting + len(self._compiling)

    def stats(self) -> SchedulerStats:
        return self._scheduler.stats()

    def step_stats(self) -> StepStats:
        return self._steps.stats()

    def step(self) -> list[Output]:
        refusals = self._take_compiled()
        launched = self._launch(self._schedule())
        self._choose(launched)
        return refusals + self._finish(launched)

    def step_overlapped(self) -> list[Output]:
        """Launch the next step, then record the previous one while the device is busy."""
        outputs = self._take_compiled()
        plan = self._schedule()
        previous, self._launched = self._launched, self._launch(plan) if plan.rows else None
        if previous is not None:
            outputs += self._finish(previous)
        if self._launched is not None:
            self._choose(self._launched)
        if self._launched is None:  # nothing could run: the scheduler still waits for this empty step's commit
            outputs += self._scheduler.commit(plan, SampledTokens([]))
        return outputs

    def _take_compiled(self) -> list[Output]:
        """Queue the sequences whose grammars are ready; refuse those whose grammars cannot be honoured."""
        refusals: list[Output] = []
        if not self._compiling:
            return refusals
        for key, (sequence, compiled) in list(self._compiling.items()):
            if not compiled.done():
                continue
            del self._compiling[key]
            try:
                sequence.constraint = compiled.result()
            except GrammarError as error:
                refusals.append((sequence, TokenOutput(key[1], (), FINISH_REFUSED, error=str(error))))
            else:
                self._scheduler.add(sequence)
        return refusals

    def _choose(self, launched: _Launched) -> None:
        """Tell the runner which tokens are allowed, while the device works on the step. Every step before must be
        committed."""
        if launched.plan.awaits_masks:
            assert self._constraints is not None
            masks = self._constraints.masks(self._scheduler.choosing(launched.plan))
            self._runner.choose(launched.handle, masks)

    def _schedule(self) -> BatchPlan:
        started_s = self._clock()
        plan = self._scheduler.schedule()
        self._steps.planned(plan, self._clock() - started_s)
        return plan

    def _launch(self, plan: BatchPlan) -> _Launched:
        started_s = self._clock()
        return _Launched(plan, self._runner.launch(plan), started_s)

    def _finish(self, launched: _Launched) -> list[Output]:
        """Wait for a step's tokens, learn from how long the device took for them, and record them."""
        plan = launched.plan
        sampled = self._runner.collect(launched.handle)
        collected_s = self._clock()
        device_s = collected_s - max(self._collected_s, launched.started_s)  # one step at a time on the device
        self._collected_s = collected_s
        self._sizer.observe(plan.num_decodes, sum(plan.num_tokens[plan.num_decodes :]), device_s)
        outputs = self._scheduler.commit(plan, sampled)
        if plan.rows:
            self._steps.done(plan, device_s, self._clock() - collected_s)
        return outputs


class _Launched(NamedTuple):
    """A step that the runner has begun."""

    plan: BatchPlan
    handle: Any
    started_s: float
