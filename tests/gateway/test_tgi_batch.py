"""TGI's batch metrics: every series there from the start, sums over engines, cumulative buckets."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from engines.api import EngineStats
from engines.step_stats import SECONDS_BOUNDS, SIZE_BOUNDS, Distribution, StepStats, StepTimes
from gateway.tgi_batch import batch_families

Labels = tuple[tuple[str, str], ...]


def samples(*engines: EngineStats) -> dict[tuple[str, Labels], float]:
    class Families(Collector):
        def collect(self):
            return batch_families(engines)

    registry = CollectorRegistry()
    registry.register(Families())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def at(place: int, count: int, bounds: tuple[float, ...] = SECONDS_BOUNDS) -> Distribution:
    counts = [0] * (len(bounds) + 1)
    counts[place] = count
    return Distribution(tuple(counts), count * bounds[min(place, len(bounds) - 1)])


def test_an_engine_that_batches_nothing_still_shows_every_series():
    told = samples(EngineStats())
    for method in ("prefill", "decode"):
        for name in ("inference", "forward", "decode", "filter"):
            assert told[f"tgi_batch_{name}_duration_count", (("method", method),)] == 0
        for name in ("count", "success", "failure"):
            assert told[f"tgi_batch_inference_{name}", (("method", method),)] == 0
    assert told["tgi_batch_concat", (("reason", "backpressure"),)] == 0
    assert told["tgi_batch_concat_duration_bucket", (("le", "+Inf"), ("method", "decode"))] == 0
    assert told["tgi_batch_next_size_bucket", (("le", "1024.0"),)] == 0


def test_steps_of_several_engines_are_summed_up_in_cumulative_buckets():
    first = StepStats(decode=StepTimes(whole=at(3, 5), device=at(2, 5), record=at(0, 5)))
    second = StepStats(decode=StepTimes(whole=at(4, 2)), sizes=at(1, 3, SIZE_BOUNDS), joining=at(0, 4))
    told = samples(EngineStats(steps=first, generated_tokens=6), EngineStats(steps=second, generated_tokens=1))
    decode = ("method", "decode")
    below = [told["tgi_batch_inference_duration_bucket", (("le", str(bound)), decode)] for bound in SECONDS_BOUNDS[:6]]
    assert below == [0, 0, 0, 5, 7, 7]
    assert told["tgi_batch_inference_count", (decode,)] == told["tgi_batch_inference_success", (decode,)] == 7
    assert told["tgi_batch_inference_duration_sum", (decode,)] == 5 * SECONDS_BOUNDS[3] + 2 * SECONDS_BOUNDS[4]
    assert told["tgi_batch_forward_duration_count", (decode,)] == 5
    assert told["tgi_batch_filter_duration_sum", (decode,)] == 0
    assert told["tgi_batch_concat", (("reason", "chunking"),)] == 4
    assert told["tgi_batch_next_size_bucket", (("le", "1.0"),)] == 0
    assert told["tgi_batch_next_size_bucket", (("le", "2.0"),)] == 3
    assert told["tgi_request_skipped_tokens_count", ()] == 7
    assert told["tgi_request_skipped_tokens_sum", ()] == 0
