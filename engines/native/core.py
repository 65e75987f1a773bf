"""EngineCore: the loop that everything serves. Decide, do, record.

Knows the scheduler and a Runner; knows nothing of tensors, sockets or text. `step` is the whole engine in three lines;
`step_overlapped` is its fast twin, which lets the device work on one step while the host records the one before.
"""

from __future__ import annotations

from typing import Any, Protocol

from engines.native.scheduler import Output, Scheduler
from engines.native.sequence import Sequence
from engines.native.types import AddSequence, BatchPlan, SampledTokens, SchedulerStats


class Runner(Protocol):
    """Does what a plan says. `launch` returns at once where the device works by itself; `collect` waits for its tokens.

    Steps are launched and collected in the same order. A launched step sees the tokens of every step launched before
    it.
    """

    def launch(self, plan: BatchPlan) -> Any: ...

    def collect(self, launched: Any) -> SampledTokens: ...


class EngineCore:
    """Sequences in, TokenOutputs out, one step at a time."""

    def __init__(self, scheduler: Scheduler, runner: Runner) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._launched: tuple[BatchPlan, Any] | None = None

    def add(self, client: bytes, message: AddSequence) -> None:
        self._scheduler.add(
            Sequence(
                key=(client, message.seq_id),
                token_ids=list(message.prompt_token_ids),
                num_prompt_tokens=len(message.prompt_token_ids),
                params=message.params,
                salt=message.cache_salt,
            )
        )

    def abort(self, client: bytes, seq_ids: tuple[int, ...]) -> None:
        for seq_id in seq_ids:
            self._scheduler.abort((client, seq_id))

    def abort_client(self, client: bytes) -> None:
        self._scheduler.abort_client(client)

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work or self._launched is not None

    @property
    def num_waiting(self) -> int:
        return self._scheduler.num_waiting

    def stats(self) -> SchedulerStats:
        return self._scheduler.stats()

    def step(self) -> list[Output]:
        plan = self._scheduler.schedule()
        sampled = self._runner.collect(self._runner.launch(plan))
        return self._scheduler.commit(plan, sampled)

    def step_overlapped(self) -> list[Output]:
        """Launch the next step, then record the previous one while the device is busy."""
        plan = self._scheduler.schedule()
        previous, self._launched = self._launched, (plan, self._runner.launch(plan)) if plan.rows else None
        outputs: list[Output] = []
        if previous is not None:
            outputs = self._scheduler.commit(previous[0], self._runner.collect(previous[1]))
        if self._launched is None:  # nothing could run: the scheduler still waits for this empty step's commit
            outputs += self._scheduler.commit(plan, SampledTokens([]))
        return outputs
