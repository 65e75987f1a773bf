"""The prefill chunk beside decodes follows the target of what it may add to their step."""

from __future__ import annotations

import pytest

from engines.native.block_pool import BlockPool
from engines.native.chunking import ChunkSizer, StepSizes
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
        self.chunks: list[int] = []

    def launch(self, plan: BatchPlan):
        self.chunks.append(sum(plan.num_tokens[plan.num_decodes :]))
        duration = BASE_S + TOKEN_S * self.chunks[-1]
        self.now_s += duration
        if plan.num_decodes:
            self.durations.append(duration)
        return super().launch(plan)


def run(target_s: float) -> list[float]:
    """Durations of the steps that decode, while long prompts arrive."""
    runner = TimedRunner()
    limits = SchedulerLimits(max_num_seqs=8, max_num_batched_tokens=8192)
    sizer = ChunkSizer(target_s, largest=8192)
    scheduler = Scheduler(BlockPool(4096, 16), limits, sizer)
    core = EngineCore(scheduler, runner, sizer, clock=lambda: runner.now_s)
    core.add(b"c", AddSequence(0, tuple(range(20)), TokenParams(max_tokens=60)))
    for _ in range(5):
        core.step()
    for i in range(1, 7):  # enough to fill every step to its target although they are spread over several
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


SIZES = StepSizes(decodes=(0, 16, 64), totals=(128, 512, 1024))


@pytest.mark.parametrize(
    ("num_decodes", "tokens", "at_least", "at_most"),
    [
        (0, 128, 128, 128),
        (0, 129, 512, 128),
        (3, 496, 496, 496),  # sixteen places of 512 are for decodes
        (17, 100, 448, 64),
        (64, 5000, 5000, 5000),  # beyond the last, any number
        (64, 20, 64, 20),  # below the first too
        (100, 412, 412, 412),  # beyond the last place for decodes, as many places as decodes
    ],
)
def test_chunks_are_fitted_to_what_needs_no_padding(num_decodes: int, tokens: int, at_least: int, at_most: int):
    assert SIZES.at_least(num_decodes, tokens) == at_least
    assert SIZES.at_most(num_decodes, tokens) == at_most


def test_prompts_are_spread_over_steps_within_the_target():
    sizer = ChunkSizer(0.05, sizes=SIZES)
    assert sizer.limit == 2048
    assert sizer.tokens_for(16, 10) == 496  # a step's rows are filled in any case
    assert sizer.tokens_for(64, 8 * 500) == 960
    assert sizer.tokens_for(64, 8 * 1500) == 1500
    assert sizer.tokens_for(64, 8 * 15000) == 2048  # the target's limit
    for _ in range(60):
        sizer.observe(0, 1024, 1024 * 1e-4)  # slow prompts: 500 tokens in 50 ms
    assert sizer.limit == pytest.approx(500, rel=0.02)
    assert sizer.tokens_for(64, 8 * 15000) == 448


def test_a_queue_of_prompts_takes_larger_chunks_than_one_of_them():
    def chunks(num_prompts: int) -> list[int]:
        runner = TimedRunner()
        sizer = ChunkSizer(1.0, sizes=SIZES)
        limits = SchedulerLimits(max_num_seqs=64, max_num_batched_tokens=8192)
        core = EngineCore(Scheduler(BlockPool(4096, 16), limits, sizer), runner, sizer, clock=lambda: runner.now_s)
        core.add(b"c", AddSequence(0, tuple(range(20)), TokenParams(max_tokens=60)))
        for _ in range(3):
            core.step()
        for i in range(num_prompts):
            core.add(b"c", AddSequence(i + 1, tuple((i + j) % 50 for j in range(1000)), TokenParams(max_tokens=1)))
        runner.chunks.clear()
        while core.has_work:
            core.step()
        return [count for count in runner.chunks if count]

    assert max(chunks(1)) == 496
    assert chunks(10)[0] == 10 * 1000 // 8


def test_without_a_target_a_chunk_takes_the_whole_budget():
    assert max(run(0.0)) > BASE_S + TOKEN_S * 8000


def test_a_target_that_nothing_meets_still_lets_prompts_go_on():
    sizer = ChunkSizer(0.001)
    sizer.observe(4, 0, 0.02)
    sizer.observe(4, 2048, 0.06)
    assert sizer.limit == 128
