"""Drives an engine core through a load, as a client would, and notes when each token came. Knows no roofline."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

from engines.native.bench.figures import Load, Spread
from engines.native.build import BuiltCore
from engines.native.types import FINISH_LENGTH, AddSequence, TokenParams

_CLIENT = b"bench"


@dataclass(slots=True)
class Timeline:
    """One request, in seconds of time.perf_counter."""

    submitted_s: float
    tokens_s: list[float] = field(default_factory=list[float])


@dataclass(frozen=True, slots=True)
class Run:
    """A load that has been driven through."""

    timelines: list[Timeline]
    duration_s: float
    steps: int
    preemptions: int

    @property
    def first_token_s(self) -> list[float]:
        return [line.tokens_s[0] - line.submitted_s for line in self.timelines]

    @property
    def inter_token_s(self) -> list[float]:
        return [b - a for line in self.timelines for a, b in zip(line.tokens_s, line.tokens_s[1:], strict=False)]


def drive(built: BuiltCore, load: Load, rng: random.Random) -> Run:
    """Random prompts, `load.concurrency` requests open until none is left to submit. Greedy, EOS ignored."""
    core = built.core
    step = core.step_overlapped if built.overlapped else core.step
    prompts = [
        tuple(rng.randrange(built.ready.vocab_size) for _ in range(load.prompt_tokens)) for _ in range(load.requests)
    ]
    params = TokenParams(max_tokens=load.output_tokens, temperature=0.0)
    preemptions = core.stats().preemptions
    timelines: list[Timeline] = []
    finished = steps = 0
    started_s = time.perf_counter()
    while finished < load.requests:
        while len(timelines) < min(load.requests, finished + load.concurrency):
            seq_id = len(timelines)
            timelines.append(Timeline(time.perf_counter()))
            core.add(_CLIENT, AddSequence(seq_id, prompts[seq_id], params))
        outputs = step()
        now_s = time.perf_counter()
        steps += 1
        for sequence, output in outputs:
            timelines[sequence.key[1]].tokens_s += [now_s] * len(output.token_ids)
            finished += bool(output.finish)
            assert output.finish in (0, FINISH_LENGTH), output
    duration_s = time.perf_counter() - started_s
    while core.has_work:  # a step launched ahead of the last token
        step()
    assert all(len(line.tokens_s) == load.output_tokens for line in timelines)
    return Run(timelines, duration_s, steps, core.stats().preemptions - preemptions)


def spread_ms(seconds: list[float]) -> Spread:
    return Spread(percentile(seconds, 0.5) * 1e3, percentile(seconds, 0.99) * 1e3)


def percentile(values: list[float], share: float) -> float:
    """Nearest rank; 0.0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
