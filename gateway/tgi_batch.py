"""TGI's `tgi_batch_*` metrics under TGI's names, made of what engines say of themselves when they are asked.

They have no label that tells engines apart, so several are summed up. Engines that batch nothing here (a remote one,
echo) count as zeros, so that every series of a dashboard is there from the start. What this scheduler does not know is
zero, too: reasons for joining a batch but `chunking`, time for filtering one, tokens skipped by speculation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric

from engines.api import EngineStats
from engines.step_stats import SECONDS_BOUNDS, SIZE_BOUNDS, Distribution, StepTimes

_GAUGES: tuple[tuple[str, str, Callable[[EngineStats], int]], ...] = (
    ("tgi_queue_size", "Requests in the engines' queues.", lambda stats: stats.waiting),
    ("tgi_batch_current_size", "Requests in the running batches.", lambda stats: stats.running),
    (
        "tgi_batch_current_max_tokens",
        "Tokens that the KV blocks held by requests have room for.",
        lambda stats: stats.kv_blocks_used * stats.kv_block_size,
    ),
    (
        "tgi_batch_max_total_tokens",
        "Tokens that the KV cache has room for.",
        lambda stats: stats.kv_blocks_total * stats.kv_block_size,
    ),
)
_REASONS = ("backpressure", "chunking", "wait_exceeded")
_METHODS: tuple[tuple[str, Callable[[EngineStats], StepTimes]], ...] = (
    ("prefill", lambda stats: stats.steps.prefill),
    ("decode", lambda stats: stats.steps.decode),
)


def batch_families(engines: Sequence[EngineStats]) -> Iterable[Metric]:
    for name, text, value in _GAUGES:
        yield GaugeMetricFamily(name, text, value=sum(value(engine) for engine in engines))
    yield from _steps(engines)
    joining = [engine.steps.joining for engine in engines]
    reasons = {reason: _count(joining) if reason == "chunking" else 0 for reason in _REASONS}
    yield _counters("tgi_batch_concat", "Steps in which requests joined others.", "reason", reasons)
    concat = _durations("concat_duration", "that planning such a step took")
    _add(concat, ["decode"], joining, SECONDS_BOUNDS)
    yield concat
    sizes = HistogramMetricFamily("tgi_batch_next_size", "Requests in the steps that compute prompts.")
    _add(sizes, [], [engine.steps.sizes for engine in engines], SIZE_BOUNDS)
    yield sizes
    skipped = HistogramMetricFamily("tgi_request_skipped_tokens", "Speculated tokens accepted beside each token.")
    _add(skipped, [], [Distribution((sum(engine.generated_tokens for engine in engines),))], (0.0,))
    yield skipped


def _steps(engines: Sequence[EngineStats]) -> Iterable[Metric]:
    """A step that fails ends its engine and what that counted, so every step that is counted succeeded."""
    whole = _durations("inference_duration", "that a step took")
    device = _durations("forward_duration", "that a step took on the device")
    record = _durations("decode_duration", "that the host took for a step's tokens")
    filtering = _durations("filter_duration", "for taking finished requests out, which is part of the host's")
    counts: dict[str, int] = {}
    for method, times in _METHODS:
        of_all = [times(engine) for engine in engines]
        counts[method] = _count(one.whole for one in of_all)
        _add(whole, [method], [one.whole for one in of_all], SECONDS_BOUNDS)
        _add(device, [method], [one.device for one in of_all], SECONDS_BOUNDS)
        _add(record, [method], [one.record for one in of_all], SECONDS_BOUNDS)
        _add(filtering, [method], [Distribution((counts[method],))], SECONDS_BOUNDS)
    yield _counters("tgi_batch_inference_count", "Steps.", "method", counts)
    yield _counters("tgi_batch_inference_success", "Steps that succeeded.", "method", counts)
    yield _counters("tgi_batch_inference_failure", "Steps that failed.", "method", dict.fromkeys(counts, 0))
    yield from (whole, device, record, filtering)


def _durations(name: str, text: str) -> HistogramMetricFamily:
    return HistogramMetricFamily(f"tgi_batch_{name}", f"Seconds {text}.", labels=["method"])


def _counters(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    """Named as TGI names them, without `_total`, and so without a type."""
    family = Metric(name, text, "unknown")
    for value, count in values.items():
        family.add_sample(name, {label: value}, count)
    return family


def _count(distributions: Iterable[Distribution]) -> int:
    return sum(sum(one.counts) for one in distributions)


def _add(
    family: HistogramMetricFamily,
    labels: Sequence[str],
    distributions: Sequence[Distribution],
    bounds: Sequence[float],
) -> None:
    """The sum of `distributions`, as Prometheus wants it: how many lie at or below each bound."""
    summed = [0] * (len(bounds) + 1)
    for one in distributions:
        for place, count in enumerate(one.counts):
            summed[place] += count
    names = [*map(str, bounds), "+Inf"]
    buckets = list(zip(names, accumulate(summed), strict=True))
    family.add_metric(labels, buckets, sum(one.total for one in distributions))
