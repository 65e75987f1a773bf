"""The prefill chunk beside decodes follows the inter-token target."""

from __future__ import annotations

import pytest

from engines.native.block_pool import BlockPool
from engines.native.chunking import ChunkSizer
from engines.native.core import EngineCore
from engines.native.scheduler import Scheduler, SchedulerLimits
from engines.native.types import AddSequence, BatchPlan, TokenParams
from tests.engines.native.scripted_runner import ScriptedRunner

BASE_S, TOKEN_S = 0.010, 0.00002


class TimedRunner(ScriptedRunner):
    """A device on which a step takes BASE_S and TOKEN_S per prefill token, by its own clock."""

    def __init__(self) -> None:
        super().__init__(4096, 16)
        self.now_s = 0.0
        self.durations: list[float] = []

    def launch(self, plan: BatchPlan):
        duration = BASE_S + TOKEN_S * sum(plan.num_tokens[plan.num_decodes :])
        self.now_s += duration
        if plan.num_decodes:
            self.durations.append(duration)
        return super().launch(plan)


def run(target_s: float) -> list[float]:
    """Durations of the steps that decode, while long prompts arrive."""
    runner = TimedRunner()
    limits = SchedulerLimits(max_num_seqs=8, max_num_batched_tokens=8192)
    scheduler = Scheduler(BlockPool(4096, 16), limits)
    core = EngineCore(scheduler, runner, ChunkSizer(target_s, largest=8192), clock=lambda: runner.now_s)
    core.add(b"c", AddSequence(0, tuple(range(20)), TokenParams(max_tokens=60)))
    for _ in range(5):
        core.step()
    for i in range(1, 5):
        core.add(b"c", AddSequence(i, tuple((i + j) % 50 for j in range(9000)), TokenParams(max_tokens=2)))
    while core.has_work:
        core.step()
    return runner.durations


@pytest.mark.parametrize("target_s", [0.03, 0.08, 0.12])
def test_steps_that_decode_meet_the_target_once_the_costs_are_known(target_s: float):
    durations = run(target_s)
    assert max(durations[8:]) <= target_s * 1.05
    assert max(durations[8:]) >= target_s * 0.8  # and waste no time by smaller chunks than need be


def test_without_a_target_a_chunk_takes_the_whole_budget():
    assert max(run(0.0)) > BASE_S + TOKEN_S * 8000


def test_a_target_below_the_decodes_own_time_still_lets_prompts_go_on():
    sizer = ChunkSizer(0.005)
    sizer.observe(4, 0, 0.02)
    sizer.observe(4, 2048, 0.06)
    assert sizer.limit == 128
