"""The measurements on a tiny model: what they drive, what they add up, and what they refuse."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from config.engines import NativeSettings
from engines.errors import InvalidRequest
from engines.native.bench.drive import drive, percentile
from engines.native.bench.figures import BenchPlan, Limits, Load, PrefillFigures
from engines.native.bench.limits import measure_limits
from engines.native.bench.measure import Bench, run_bench
from engines.native.build import build_core
from tests.engines.native.bench.tiny import tiny_model

LIMITS = Limits(copy_bytes_per_s=1e10, matmul_flops_per_s=1e11)


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory) -> NativeSettings:
    folder = tiny_model(tmp_path_factory.mktemp("tiny"))
    return NativeSettings(model=str(folder), device="cpu", load_format="dummy", max_num_seqs=4)


@pytest.fixture(scope="module")
def bench(section: NativeSettings) -> Bench:
    return Bench(build_core(section, lambda *_: None), LIMITS)


def test_limits_of_this_machine_are_positive():
    limits = measure_limits(torch.device("cpu"))
    assert limits.copy_bytes_per_s > 1e6
    assert limits.matmul_flops_per_s > 1e6


def test_a_model_that_only_embeds_is_not_measured(section: NativeSettings):
    built = build_core(section.model_copy(update={"task": "embed"}), lambda *_: None)
    with pytest.raises(InvalidRequest, match="only embeds"):
        Bench(built, LIMITS).check(BenchPlan(("prefill",)))


def test_every_request_of_a_load_gets_its_tokens_in_order(section: NativeSettings):
    built = build_core(section, lambda *_: None)
    run = drive(built, Load(prompt_tokens=20, output_tokens=6, requests=9, concurrency=3), random.Random(0))
    assert len(run.timelines) == 9
    for line in run.timelines:
        assert len(line.tokens_s) == 6
        assert [line.submitted_s, *line.tokens_s] == sorted([line.submitted_s, *line.tokens_s])
    assert len(run.inter_token_s) == 9 * 5
    assert run.steps >= 3 * 6
    assert built.core.stats().kv_blocks_used == 0
    assert built.core.stats().prefix_cache_hit_tokens == 0


def test_an_embedding_table_of_its_own_is_not_read_as_a_whole(tmp_path: Path):
    section = NativeSettings(model=str(tiny_model(tmp_path, tied=False)), device="cpu", load_format="dummy")
    built = build_core(section, lambda *_: None)
    assert built.ready.weight_bytes - built.step_weight_bytes == 300 * 64 * 2


def test_no_more_requests_are_open_than_the_level_says(section: NativeSettings):
    run = drive(build_core(section, lambda *_: None), Load(8, 4, requests=6, concurrency=2), random.Random(0))
    for line in run.timelines:
        at = line.submitted_s
        assert sum(other.submitted_s <= at < other.tokens_s[-1] for other in run.timelines) <= 2


def test_figures_agree_with_each_other(bench: Bench):
    load = Load(prompt_tokens=30, output_tokens=10, requests=8, concurrency=4)
    figures = bench.throughput(load)
    assert figures.output_tokens_per_s == pytest.approx(80 / figures.duration_s)
    assert figures.of_limit == pytest.approx(figures.output_tokens_per_s / figures.limit_tokens_per_s)
    assert 0 < figures.first_token_ms.p50 <= figures.first_token_ms.p99
    assert 0 < figures.inter_token_ms.p50 <= figures.inter_token_ms.p99
    latency = bench.latency(Load(30, 10, requests=3, concurrency=3), repeats=2)
    assert latency.first_token_ms + 9 * latency.inter_token_limit_ms < latency.total_ms
    assert max(latency.inter_token_shares.bandwidth, latency.inter_token_shares.matrix) == pytest.approx(
        latency.inter_token_limit_ms / latency.inter_token_ms
    )
    prefill = bench.prefill(64, repeats=2)
    assert prefill.tokens_per_s == pytest.approx(64 / prefill.first_token_ms * 1e3)
    assert prefill.of_limit == pytest.approx(max(prefill.shares.bandwidth, prefill.shares.matrix))


def test_a_plan_is_measured_in_its_order_and_reported_whole(section: NativeSettings):
    plan = BenchPlan(
        ("latency", "throughput", "prefill"), prompt_tokens=16, output_tokens=4, concurrency=(2, 1), repeats=1
    )
    told: list[object] = []
    report = run_bench(section, plan, lambda *_: None, lambda *about: told.extend(about), told.append)
    assert told == [report.about, report.limits, *report.latency, *report.throughput, *report.prefill]
    assert [figures.concurrency for figures in report.throughput] == [2, 1]
    assert [figures.prompt_tokens for figures in report.prefill] == [128], "of the default lengths, those that fit"
    assert isinstance(told[-1], PrefillFigures)


@pytest.mark.parametrize(
    ("plan", "refusal"),
    [
        (BenchPlan(("throughput",), prompt_tokens=250, output_tokens=7), r"prompt_tokens \(250\) .* context of 256"),
        (BenchPlan(("latency",), prompt_tokens=8, batch_size=5, output_tokens=8), "batch_size is 5, .* runs 4"),
        (BenchPlan(("latency",), prompt_tokens=8, output_tokens=1), "output_tokens is 1"),
        (BenchPlan(("prefill",), lengths=(8, 256)), "lengths: a prompt of 256 tokens"),
    ],
    ids=["too long", "batch too large", "nothing between", "prompt too long"],
)
def test_what_the_engine_cannot_hold_is_refused(bench: Bench, plan: BenchPlan, refusal: str):
    with pytest.raises(InvalidRequest, match=refusal):
        bench.check(plan)


def test_percentiles_are_nearest_ranks():
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([float(i) for i in range(100)], 0.99) == 99.0
    assert percentile([], 0.5) == 0.0
