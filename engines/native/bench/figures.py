"""What the bench takes and what it gives: loads, measured figures, and the sections of a report. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

What = Literal["latency", "throughput", "prefill"]


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """What to measure. Each of `what` reads its own fields and those that say nothing else."""

    what: tuple[What, ...]
    prompt_tokens: int = 256  # latency, throughput
    output_tokens: int = 128  # latency, throughput
    batch_size: int = 1  # latency
    concurrency: tuple[int, ...] = (1, 8, 32)  # throughput
    requests: int | None = None  # throughput, at each level; None: two for each of a level, at least 4
    lengths: tuple[int, ...] | None = None  # prefill; None: powers of 4 from 128 that fit
    repeats: int = 3  # latency, prefill; the median counts


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of one shape, `concurrency` of them open at any time: greedy, and nothing ends them but their length."""

    prompt_tokens: int
    output_tokens: int
    requests: int
    concurrency: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What the device was measured to do, at the start of the run."""

    copy_bytes_per_s: float  # read plus written, by a copy within its memory
    matmul_flops_per_s: float  # by a large bfloat16 product


@dataclass(frozen=True, slots=True)
class Shares:
    """How much of each limit a figure uses, 1.0 being all of it."""

    bandwidth: float
    matrix: float


@dataclass(frozen=True, slots=True)
class Spread:
    """Milliseconds."""

    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class LatencyFigures:
    """One batch that arrives together. `limit_*`: what the device's limits allow."""

    batch_size: int
    prompt_tokens: int
    output_tokens: int
    repeats: int
    first_token_ms: float  # until every request has its first token
    first_token_limit_ms: float
    first_token_shares: Shares
    inter_token_ms: float
    inter_token_limit_ms: float
    inter_token_shares: Shares
    total_ms: float


@dataclass(frozen=True, slots=True)
class ThroughputFigures:
    """Many requests at one level of concurrency. The limit is the serial roofline: see roofline.py."""

    concurrency: int
    prompt_tokens: int
    output_tokens: int
    requests: int
    output_tokens_per_s: float
    limit_tokens_per_s: float
    of_limit: float
    shares: Shares
    first_token_ms: Spread
    inter_token_ms: Spread
    duration_s: float
    steps: int
    preemptions: int


@dataclass(frozen=True, slots=True)
class PrefillFigures:
    """One prompt at a time."""

    prompt_tokens: int
    repeats: int
    tokens_per_s: float
    limit_tokens_per_s: float
    of_limit: float
    shares: Shares
    first_token_ms: float


@dataclass(frozen=True, slots=True)
class About:
    """What was measured."""

    model: str
    device: str
    dtype: str
    attention_backend: str
    max_num_seqs: int
    kv_capacity_tokens: int
    load_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """One run of the bench."""

    about: About
    limits: Limits
    latency: tuple[LatencyFigures, ...] = ()
    throughput: tuple[ThroughputFigures, ...] = ()
    prefill: tuple[PrefillFigures, ...] = ()
