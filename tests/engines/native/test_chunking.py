"""The prefill chunk beside decodes follows the target of what it may add to their step."""

from __future__ import annotations

import pytest

from engines.native.block_pool import BlockPool
from engines.native.build import prefill_target_s
from engines.native.chunk_graphs import DECODES, TOTALS
from engines.native.chunking import ChunkSizer, StepSizes
from engines.native.core import EngineCore
from engines.native.scheduler import Scheduler, SchedulerLimits
from engines.native.types import AddSequence, BatchPlan, SampledTokens, TokenParams

BASE_S, TOKEN_S = 0.010, 0.00002


class TimedRunner:
    """A device on which a step takes BASE_S and TOKEN_S per prefill token, by its own clock."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.durations: list[float] = []
        self.chunks: list[int] = []

    def launch(self, plan: BatchPlan) -> int:
        self.chunks.append(sum(plan.num_tokens[plan.num_decodes :]))
        duration = BASE_S + TOKEN_S * self.chunks[-1]
        self.now_s += duration
        if plan.num_decodes:
            self.durations.append(duration)
        return sum(plan.samples)

    def choose(self, *_: object) -> None:
        raise AssertionError("nothing here is constrained")

    def collect(self, launched: int) -> SampledTokens:
        return SampledTokens([7] * launched)


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
    for i in range(1, 7):
        core.add(b"c", AddSequence(i, tuple((i + j) % 50 for j in range(9000)), TokenParams(max_tokens=2)))
    while core.has_work:
        core.step()
    return runner.durations


@pytest.mark.parametrize("target_s", [0.02, 0.07, 0.11])
def test_prompts_add_the_target_to_decodes_once_the_costs_are_known(target_s: float):
    durations = run(target_s)
    assert max(durations[8:]) <= BASE_S + target_s * 1.05
    # And no less than that, or than a sixty-fourth of what waits.
    assert max(durations[8:]) >= BASE_S + min(target_s * 0.8, TOKEN_S * (6 * 9000 / 64 - 150))


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


def learned(token_s: float, target_s: float = 0.05) -> ChunkSizer:
    """A sizer that has seen what a prompt token costs."""
    sizer = ChunkSizer(target_s, sizes=SIZES)
    for _ in range(60):
        sizer.observe(0, 1024, 1024 * token_s)
    return sizer


def test_prompts_are_spread_over_steps_within_the_target():
    assert ChunkSizer(0.05, sizes=SIZES).tokens_for(16, 10) == 2048  # nothing is known yet
    sizer = learned(25e-6)  # 2,000 tokens in the target, 300 in the least share of it
    assert sizer.limit == pytest.approx(2000, rel=0.01)
    assert sizer.tokens_for(16, 10) == 496  # 300 and 4 a decode, as many as need no padding
    assert sizer.tokens_for(64, 10) == 960
    assert sizer.tokens_for(64, 64 * 900) == 960
    assert sizer.tokens_for(64, 64 * 1500) == 1500
    assert sizer.tokens_for(64, 64 * 15000) == sizer.limit
    assert sizer.tokens_for(200, 1500) == 1500  # no row is cheap
    assert sizer.tokens_for(200, 8 * 1500) == sizer.limit
    assert sizer.tokens_for(191, 8 * 1500) == 300 + 4 * 191
    assert learned(1e-4).tokens_for(64, 64 * 15000) == 448  # slow prompts: 500 tokens in the target


def test_a_burst_of_prompts_is_spread_over_many_steps():
    def chunks(num_prompts: int, target_s: float) -> list[int]:
        runner = TimedRunner()
        sizer = learned(TOKEN_S, target_s)
        limits = SchedulerLimits(max_num_seqs=200, max_num_batched_tokens=8192)
        core = EngineCore(Scheduler(BlockPool(8192, 16), limits, sizer), runner, sizer, clock=lambda: runner.now_s)
        core.add(b"c", AddSequence(0, tuple(range(20)), TokenParams(max_tokens=400)))
        for _ in range(3):
            core.step()
        for i in range(num_prompts):
            prompt = tuple((i * 7 + j * i) % 50 for j in range(1000))
            core.add(b"c", AddSequence(i + 1, prompt, TokenParams(max_tokens=1)))
        runner.chunks.clear()
        while core.has_work:
            core.step()
        return [count for count in runner.chunks if count]

    assert max(chunks(3, target_s=0.05)) == 496
    burst = chunks(90, target_s=0.05)
    assert burst[0] == -(-90 * 1000 // 64)  # beyond the last size: any number is computed as it is
    assert burst[0] > burst[len(burst) // 2]
    assert max(chunks(90, target_s=0.01)) <= 0.01 / TOKEN_S


def test_without_a_target_a_chunk_takes_the_whole_budget():
    assert max(run(0.0)) > BASE_S + TOKEN_S * 8000


def test_a_target_that_nothing_meets_still_lets_prompts_go_on():
    sizer = ChunkSizer(0.001)
    sizer.observe(4, 0, 0.02)
    sizer.observe(4, 2048, 0.06)
    assert sizer.limit == 128


def steps_with(sizer: ChunkSizer, num_decodes: int, base_s: float, token_s: float, count: int = 60) -> None:
    for _ in range(count):
        sizer.observe(num_decodes, 1500, base_s + 1500 * token_s)


def test_decodes_that_were_never_seen_alone_are_not_taken_for_the_prompts_cost():
    sizer = learned(25e-6)
    for _ in range(30):
        sizer.observe(4, 0, 0.005)
    steps_with(sizer, 200, base_s=0.020, token_s=25e-6)
    assert sizer.limit == pytest.approx(2000, rel=0.01)


def test_one_slow_step_among_them_changes_little():
    sizer = learned(25e-6)
    sizer.observe(4, 0, 0.005)
    for _ in range(20):
        steps_with(sizer, 200, base_s=0.020, token_s=25e-6, count=20)
        sizer.observe(200, 1500, 0.020 + 1500 * 25e-6 + 0.02)
    assert sizer.limit > 1900


@pytest.mark.parametrize(
    ("known_s", "actual_s", "least", "most"),
    [
        pytest.param(25e-6, 50e-6, 1000, 1100, id="more than decodes, at most 20 ms, explain"),
        pytest.param(50e-6, 25e-6, 1700, 2000, id="less, though decodes take at least 10 ms"),
    ],
)
def test_prompts_that_cost_something_else_than_known_move_the_limit(
    known_s: float, actual_s: float, least: int, most: int
):
    sizer = learned(known_s)
    assert sizer.limit == pytest.approx(0.05 / known_s, rel=0.05)
    for _ in range(30):
        sizer.observe(100, 0, 0.010)
    steps_with(sizer, 200, base_s=0.015, token_s=actual_s)
    assert least <= sizer.limit <= most


def test_decodes_seen_long_ago_are_forgotten():
    sizer = learned(25e-6)
    for _ in range(30):
        sizer.observe(100, 0, 0.030)
    steps_with(sizer, 100, base_s=0.005, token_s=25e-6)  # shorter sequences, which decode faster
    assert sizer.limit > 5000
    steps_with(sizer, 100, base_s=0.005, token_s=25e-6, count=1000)
    steps_with(sizer, 0, base_s=0.0, token_s=25e-6)
    steps_with(sizer, 100, base_s=0.005, token_s=25e-6)
    assert sizer.limit == pytest.approx(2000, rel=0.01)


@pytest.mark.parametrize("num_decodes", [1, 16, 40, 64, 128, 200, 300])
def test_a_limit_that_one_long_stall_lowered_rises_again(num_decodes: int):
    sizer = ChunkSizer(0.05, largest=4096, sizes=StepSizes(DECODES, TOTALS))

    def prompts(count: int) -> list[int]:
        chunks: list[int] = []
        for _ in range(count):
            chunks.append(sizer.tokens_for(num_decodes, 100_000))
            sizer.observe(num_decodes, chunks[-1], 0.01 + 25e-6 * chunks[-1])
        return chunks

    for _ in range(30):
        sizer.observe(num_decodes, 0, 0.01)
    usual = prompts(60)[-1]
    assert usual > 1000
    sizer.observe(num_decodes, usual, 30.0)
    assert prompts(10)[-1] > usual // 2
    for _ in range(3):  # of the first steps, before anything is known
        sizer.observe(num_decodes, usual, 30.0)
    assert prompts(60)[-1] > 0.9 * usual


def test_one_long_stall_of_decodes_does_not_pass_for_their_cost():
    sizer = learned(25e-6)
    for _ in range(30):
        sizer.observe(100, 0, 0.010)
    sizer.observe(100, 0, 30.0)
    steps_with(sizer, 100, base_s=0.010, token_s=25e-6)
    assert sizer.limit < 3000


@pytest.mark.parametrize(
    ("asked_ms", "on_gpu", "token_s", "expected"),
    [
        (None, True, 0.0043, 0.05),
        (None, True, 0.012, 0.12),  # a large model, of which 50 ms are a few hundred tokens
        (None, False, 0.1, 0.0),
        (30.0, True, 0.012, 0.03),
        (0.0, True, 0.012, 0.0),
        (30.0, False, 0.0, 0.03),
    ],
)
def test_the_target_is_what_was_asked_for_or_what_some_tokens_take(
    asked_ms: float | None, on_gpu: bool, token_s: float, expected: float
):
    assert prefill_target_s(asked_ms, on_gpu=on_gpu, token_s=token_s) == pytest.approx(expected)
