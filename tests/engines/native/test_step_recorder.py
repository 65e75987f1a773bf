"""The core counts its steps: what kind, how long, how many sequences."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engines.native.block_pool import BlockPool
from engines.native.core import EngineCore
from engines.native.scheduler import Scheduler, SchedulerLimits
from engines.native.types import AddSequence, CoreMessage, StepReport, TokenParams
from engines.step_stats import SECONDS_BOUNDS, SIZE_BOUNDS, Distribution, StepStats
from tests.engines.native.scripted_runner import ScriptedRunner

STEP_S = 0.01


class TimedRunner(ScriptedRunner):
    """A device on which a step takes STEP_S, by its own clock; the host takes no time."""

    now_s = 0.0

    def collect(self, launched: Any):
        self.now_s += STEP_S
        return super().collect(launched)


def core_of(runner: TimedRunner) -> EngineCore:
    limits = SchedulerLimits(max_num_seqs=8, max_num_batched_tokens=64)
    return EngineCore(Scheduler(BlockPool(256, 16), limits), runner, clock=lambda: runner.now_s)


def add(core: EngineCore, seq_id: int, num_prompt_tokens: int) -> None:
    core.add(b"c", AddSequence(seq_id, tuple(range(num_prompt_tokens)), TokenParams(max_tokens=10)))


def bucket(one: Distribution) -> list[int]:
    return [place for place, count in enumerate(one.counts) if count]


@pytest.mark.parametrize("overlapped", [False, True])
def test_steps_are_told_apart_by_whether_they_compute_prompts(overlapped: bool):
    runner = TimedRunner(256, 16)
    core = core_of(runner)
    step = core.step_overlapped if overlapped else core.step
    add(core, 0, 100)  # two chunks
    while core.has_work:
        step()
    told = core.step_stats()
    assert sum(told.prefill.whole.counts) == 2
    assert sum(told.decode.whole.counts) == 9
    assert told.decode.device.total + told.prefill.device.total == pytest.approx(11 * STEP_S)
    (place,) = bucket(told.decode.device)
    assert SECONDS_BOUNDS[place - 1] < STEP_S <= SECONDS_BOUNDS[place]
    assert bucket(told.decode.record) == [0]
    assert (told.joining.counts, told.sizes.total) == ((0,) * 36, 2)


def test_who_comes_to_a_running_batch_joins_it():
    core = core_of(TimedRunner(256, 16))
    add(core, 0, 5)
    core.step()
    add(core, 1, 5)
    add(core, 2, 5)
    core.step()
    told = core.step_stats()
    assert sum(told.joining.counts) == 1
    assert bucket(told.sizes) == [0, SIZE_BOUNDS.index(4.0)]  # one alone, then three


def test_the_report_survives_the_wire():
    core = core_of(TimedRunner(256, 16))
    add(core, 0, 5)
    core.step()
    report = StepReport(core.step_stats())
    assert msgspec.msgpack.Decoder(CoreMessage).decode(msgspec.msgpack.encode(report)) == report
    assert report.steps != StepStats()
