"""TGI's metrics under TGI's names, observed once per generating request, so that its dashboards keep working.

What a request is counted as is one thing here: TGI counted a chat twice or three times. Its families about batches are
in tgi_batch.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from engines.step_stats import SECONDS_BOUNDS
from gateway.record import RequestRecord, spent_s

PREFIX = "tgi_"
_DURATION_S = SECONDS_BOUNDS  # the buckets of every TGI duration
_TOKENS = tuple(2**k for k in range(18))  # up to 131072
_FAILURES = ("overloaded", "validation", "template", "incomplete", "generation", "dropped")


class TgiMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._count = Counter("tgi_request_count", "Requests to generate.", registry=registry)
        self._success = Counter("tgi_request_success", "Requests answered in full.", registry=registry)
        self._failure = Counter("tgi_request_failure", "Requests that failed.", ["err"], registry=registry)
        for err in _FAILURES:
            self._failure.labels(err)  # shown as 0 before the first

        def durations(name: str, text: str) -> Histogram:
            return Histogram(f"tgi_request_{name}duration", f"Seconds {text}.", buckets=_DURATION_S, registry=registry)

        def tokens(name: str, text: str) -> Histogram:
            return Histogram(f"tgi_request_{name}", f"Tokens {text}.", buckets=_TOKENS, registry=registry)

        self._duration = durations("", "from a request's headers to the end of its answer")
        self._validation = durations("validation_", "until a request was read and found valid")
        self._queue = durations("queue_", "that a request waited for a place in the batch")
        self._inference = durations("inference_", "that a request was worked on")
        self._per_token = durations("mean_time_per_token_", "of a request's inference, per token")
        self._input_length = tokens("input_length", "of a request's prompt")
        self._generated = tokens("generated_tokens", "generated for a request")
        self._max_new = tokens("max_new_tokens", "that a request asked for at most")

    def closed(self, record: RequestRecord, total_s: float) -> None:
        self._count.inc()
        if record.failure:
            self._failure.labels(record.failure).inc()
            return
        self._success.inc()
        spent = spent_s(record, total_s)
        self._duration.observe(total_s)
        self._validation.observe(spent.validation)
        self._queue.observe(spent.queue)
        self._inference.observe(spent.inference)
        self._per_token.observe(spent.inference / max(record.completion_tokens, 1))
        self._input_length.observe(record.prompt_tokens)
        self._generated.observe(record.completion_tokens)
        if record.max_new_tokens is not None:
            self._max_new.observe(record.max_new_tokens)


class WithoutTotal(Collector):
    """Another collector's families, TGI's counters named as TGI names them: without `_total`, and so without a type."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def collect(self) -> Iterable[Metric]:
        for metric in self._collector.collect():
            if metric.type != "counter" or not metric.name.startswith(PREFIX):
                yield metric
                continue
            untyped = Metric(metric.name, metric.documentation, "unknown")
            for sample in metric.samples:
                untyped.add_sample(sample.name.removesuffix("_total"), sample.labels, sample.value)
            yield untyped
