"""The prefill chunk beside decodes follows the target of what it may add to their step."""

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


@pytest.mark.parametrize("target_s", [0.02, 0.07, 0.11])
def test_prompts_add_the_target_to_decodes_once_the_costs_are_known(target_s: float):
    durations = run(target_s)
    assert max(durations[8:]) <= BASE_S + target_s * 1.05
    assert max(durations[8:]) >= BASE_S + target_s * 0.8  # and waste no time by smaller chunks than need be


def test_a_limit_does_not_fall_with_more_decodes():
    sizer = ChunkSizer(0.05)
    for base_s in (0.01, 0.02, 0.04):
        for _ in range(30):
            sizer.observe(4, 0, base_s)
            sizer.observe(4, sizer.limit, base_s + sizer.limit * 2e-5)
        assert sizer.limit == pytest.approx(2500, rel=0.05)


def test_a_limit_is_a_number_of_tokens_that_needs_no_padding():
    sizer = ChunkSizer(0.05, sizes=(256, 1024, 2048))
    for token_s, limit in ((1e-4, 256), (3e-5, 1024), (1e-5, 4999)):
        for _ in range(60):
            sizer.observe(0, 1024, 1024 * token_s)
        assert sizer.limit == limit


def test_without_a_target_a_chunk_takes_the_whole_budget():
    assert max(run(0.0)) > BASE_S + TOKEN_S * 8000


def test_a_target_that_nothing_meets_still_lets_prompts_go_on():
    sizer = ChunkSizer(0.001)
    sizer.observe(4, 0, 0.02)
    sizer.observe(4, 2048, 0.06)
    assert sizer.limit == 128
