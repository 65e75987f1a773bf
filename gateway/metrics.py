"""Prometheus metrics under the prefix `headrace_`. Observed once per request, never per token.

Several gateway processes may share one listening socket, and a scrape reaches any one of them. Then whoever starts them
sets PROMETHEUS_MULTIPROC_DIR, an empty directory, in their environment before prometheus_client is imported: counters
and histograms live in files there and every process answers for all. Engine gauges are read from the engines of the
process that answers: all see one native engine alike, while what remote and echo engines count is that process's own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector

from engines.api import Engine, EngineStats
from gateway.record import RequestRecord
from gateway.tgi_batch import batch_families
from gateway.tgi_metrics import TgiMetrics, WithoutTotal

disable_created_metrics()  # a second series for each that nobody reads

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_DURATION_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0)
_PER_TOKEN_S = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)


class Metrics:
    """The families of one gateway process; `render` answers a scrape."""

    def __init__(self, engines: Sequence[Engine], multiprocess_dir: Path | None = None) -> None:
        own = CollectorRegistry()
        self._requests = Counter(
            "headrace_requests",
            "HTTP requests answered; status 499: the client left.",
            ["route", "status"],
            registry=own,
        )
        self._in_progress = Gauge(
            "headrace_requests_in_progress", "HTTP requests being served.", registry=own, multiprocess_mode="livesum"
        )
        self._duration = Histogram(
            "headrace_request_duration_seconds",
            "From the request's headers to the end of its answer.",
            ["route", "model"],
            buckets=_DURATION_S,
            registry=own,
        )
        self._first_token = Histogram(
            "headrace_time_to_first_token_seconds",
            "From the request's headers to the first token.",
            ["model"],
            buckets=_DURATION_S,
            registry=own,
        )
        self._per_token = Histogram(
            "headrace_time_per_output_token_seconds",
            "Mean time between the tokens of a request after its first.",
            ["model"],
            buckets=_PER_TOKEN_S,
            registry=own,
        )
        self._prompt_tokens = Counter("headrace_prompt_tokens", "Prompt tokens processed.", ["model"], registry=own)
        self._cached_tokens = Counter(
            "headrace_cached_prompt_tokens", "Prompt tokens found in the prefix cache.", ["model"], registry=own
        )
        self._completion_tokens = Counter(
            "headrace_completion_tokens", "Tokens generated, abandoned requests included.", ["model"], registry=own
        )
        self._tgi = TgiMetrics(own)
        shared = own if multiprocess_dir is None else MultiProcessCollector(None, path=str(multiprocess_dir))
        self._exposed = CollectorRegistry()
        self._exposed.register(WithoutTotal(shared))
        self._exposed.register(_EngineCollector(engines))

    def opened(self) -> None:
        self._in_progress.inc()

    def closed(self, record: RequestRecord, route: str) -> None:
        """Every `opened` request ends here, whatever became of it."""
        self._in_progress.dec()
        self._requests.labels(route, str(record.status)).inc()
        now = time.perf_counter()
        if record.generates:
            self._tgi.closed(record, now - record.started_at)
        if not record.model:
            return
        self._duration.labels(route, record.model).observe(now - record.started_at)
        self._prompt_tokens.labels(record.model).inc(record.prompt_tokens)
        self._cached_tokens.labels(record.model).inc(record.cached_tokens)
        self._completion_tokens.labels(record.model).inc(record.completion_tokens)
        if record.first_token_at is not None:
            self._first_token.labels(record.model).observe(record.first_token_at - record.started_at)
            if record.completion_tokens > 1:
                mean_s = (now - record.first_token_at) / (record.completion_tokens - 1)
                self._per_token.labels(record.model).observe(mean_s)

    def render(self) -> bytes:
        return generate_latest(self._exposed)


# --- engines ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _EngineFamily:
    field: str  # of EngineStats
    name: str
    help: str
    family: type[GaugeMetricFamily] | type[CounterMetricFamily]


_ENGINE_FAMILIES = (
    _EngineFamily("running", "headrace_engine_requests_running", "Requests in the running batch.", GaugeMetricFamily),
    _EngineFamily("waiting", "headrace_engine_requests_waiting", "Requests in the engine's queue.", GaugeMetricFamily),
    _EngineFamily("kv_blocks_used", "headrace_engine_kv_blocks_used", "KV blocks held by requests.", GaugeMetricFamily),
    _EngineFamily("kv_blocks_total", "headrace_engine_kv_blocks", "KV blocks that there are.", GaugeMetricFamily),
    _EngineFamily(
        "prefix_cache_hit_tokens",
        "headrace_engine_prefix_cache_hit_tokens",
        "Prompt tokens whose KV was found.",
        CounterMetricFamily,
    ),
    _EngineFamily(
        "prefix_cache_query_tokens",
        "headrace_engine_prefix_cache_query_tokens",
        "Prompt tokens whose KV was looked for.",
        CounterMetricFamily,
    ),
    _EngineFamily("preemptions", "headrace_engine_preemptions", "Requests set back to the queue.", CounterMetricFamily),
    _EngineFamily("prompt_tokens", "headrace_engine_prompt_tokens", "Prompt tokens processed.", CounterMetricFamily),
    _EngineFamily("generated_tokens", "headrace_engine_generated_tokens", "Tokens generated.", CounterMetricFamily),
)


class _EngineCollector:
    """Reads `Engine.stats()` when scraped. An engine is labelled by the name of its first model."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = engines

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing to check names against before the first scrape

    def collect(self) -> Iterable[Metric]:
        stats: list[tuple[str, EngineStats]] = [
            (engine.models[0].name if engine.models else "", engine.stats()) for engine in self._engines
        ]
        yield from batch_families([values for _, values in stats])
        for spec in _ENGINE_FAMILIES:
            family = spec.family(spec.name, spec.help, labels=["model"])
            for model, values in stats:
                family.add_metric([model], getattr(values, spec.field))
            yield family
