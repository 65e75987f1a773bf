"""The three measurements: latency of one batch, throughput under load, prefill by length. Straight into the core.

Owns which loads are driven and what becomes of their times. Imports torch: not for a process that serves HTTP.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator

from config.engines import NativeSettings
from engines.errors import InvalidRequest
from engines.native.bench.drive import Run, drive, percentile, spread_ms
from engines.native.bench.figures import (
    About,
    BenchPlan,
    LatencyFigures,
    Limits,
    Load,
    PrefillFigures,
    Report,
    ThroughputFigures,
)
from engines.native.bench.limits import measure_limits
from engines.native.bench.roofline import Roofline
from engines.native.build import BuiltCore, build_core, prepare_device
from engines.native.distributed.ranks import other_ranks
from engines.native.launch import OnProgress

Figures = LatencyFigures | ThroughputFigures | PrefillFigures
_DEFAULT_LENGTHS = (128, 512, 2048, 8192)


def run_bench(
    section: NativeSettings,
    plan: BenchPlan,
    on_progress: OnProgress,
    on_ready: Callable[[About, Limits], None],
    on_figures: Callable[[Figures], None],
) -> Report:
    """Measures the device's limits, builds the engine, and then everything in the plan; callbacks tell as it goes.

    Raises EngineUnavailable where the engine cannot be built, InvalidRequest for a plan that it cannot run.
    """
    limits = measure_limits(prepare_device(section))
    with other_ranks(section) as member:
        built = build_core(section, on_progress, member)
        bench = Bench(built, limits)
        bench.check(plan)
        on_ready(bench.about, limits)
        bench.warm_up()
        latency: list[LatencyFigures] = []
        throughput: list[ThroughputFigures] = []
        prefill: list[PrefillFigures] = []
        for figures in bench.run(plan):
            on_figures(figures)
            match figures:
                case LatencyFigures():
                    latency.append(figures)
                case ThroughputFigures():
                    throughput.append(figures)
                case PrefillFigures():
                    prefill.append(figures)
        return Report(bench.about, limits, tuple(latency), tuple(throughput), tuple(prefill))


class Bench:
    """A built core and what its device allows."""

    def __init__(self, built: BuiltCore, limits: Limits) -> None:
        self._built = built
        self._ready = built.ready
        self._roofline = Roofline(built.config, built.step_weight_bytes, built.kv_token_bytes, limits)
        self._rng = random.Random(0)  # no prompt comes twice, so the prefix cache has nothing to give

    @property
    def about(self) -> About:
        ready = self._ready
        return About(
            model=ready.model,
            device=ready.device,
            dtype=ready.dtype,
            attention_backend=ready.attention_backend,
            max_num_seqs=ready.max_num_seqs,
            kv_capacity_tokens=ready.kv_capacity_tokens,
            load_s=ready.load_s,
        )

    def check(self, plan: BenchPlan) -> None:
        """Raises InvalidRequest for what this engine cannot hold."""
        if not self._ready.generates:
            raise InvalidRequest("The model only embeds, and what is measured here is generation.")
        longest = self._ready.max_model_len
        generates = bool({"latency", "throughput"} & set(plan.what))
        if generates and plan.output_tokens < 2:
            raise InvalidRequest(
                f"output_tokens is {plan.output_tokens}; there is nothing between fewer than 2 tokens."
            )
        if generates and plan.prompt_tokens + plan.output_tokens > longest:
            raise InvalidRequest(
                f"prompt_tokens ({plan.prompt_tokens}) + output_tokens ({plan.output_tokens}) exceed the context of "
                f"{longest} tokens; lower them, or raise max_model_len where the model allows it."
            )
        if "latency" in plan.what and plan.batch_size > self._ready.max_num_seqs:
            raise InvalidRequest(
                f"batch_size is {plan.batch_size}, but the engine runs {self._ready.max_num_seqs} sequences at once; "
                "raise max_num_seqs."
            )
        if "prefill" in plan.what and max(plan.lengths or (0,)) >= longest:
            raise InvalidRequest(
                f"lengths: a prompt of {max(plan.lengths or (0,))} tokens and one of output exceed the context of "
                f"{longest} tokens."
            )

    def warm_up(self) -> None:
        """A short load, so that the first figure does not pay for what only the first steps do."""
        tokens = max(1, min(8, self._ready.max_model_len // 2))
        drive(self._built, Load(prompt_tokens=tokens, output_tokens=tokens, requests=4, concurrency=4), self._rng)

    def run(self, plan: BenchPlan) -> Iterator[Figures]:
        for what in plan.what:
            match what:
                case "latency":
                    load = Load(plan.prompt_tokens, plan.output_tokens, plan.batch_size, plan.batch_size)
                    yield self.latency(load, plan.repeats)
                case "throughput":
                    for concurrency in plan.concurrency:
                        requests = plan.requests or max(4, 2 * concurrency)
                        yield self.throughput(Load(plan.prompt_tokens, plan.output_tokens, requests, concurrency))
                case "prefill":
                    lengths = plan.lengths or [n for n in _DEFAULT_LENGTHS if n < self._ready.max_model_len]
                    for length in lengths:
                        yield self.prefill(length, plan.repeats)

    def latency(self, load: Load, repeats: int) -> LatencyFigures:
        """All requests of the load at once."""
        runs = self._drive(load, repeats)
        roofline, batch = self._roofline, load.requests
        first_token_s = statistics.median(max(run.first_token_s) for run in runs)
        inter_token_s = statistics.median(percentile(run.inter_token_s, 0.5) for run in runs)
        prefill = roofline.weights(1) + roofline.prefill(load.prompt_tokens).times(batch)
        middle = load.prompt_tokens + (load.output_tokens + 1) // 2
        decode = roofline.weights(1) + roofline.decode(middle, middle).times(batch)
        return LatencyFigures(
            batch_size=batch,
            prompt_tokens=load.prompt_tokens,
            output_tokens=load.output_tokens,
            repeats=repeats,
            first_token_ms=first_token_s * 1e3,
            first_token_limit_ms=roofline.seconds(prefill) * 1e3,
            first_token_shares=roofline.shares(prefill, first_token_s),
            inter_token_ms=inter_token_s * 1e3,
            inter_token_limit_ms=roofline.seconds(decode) * 1e3,
            inter_token_shares=roofline.shares(decode, inter_token_s),
            total_ms=statistics.median(run.duration_s for run in runs) * 1e3,
        )

    def throughput(self, load: Load) -> ThroughputFigures:
        [run] = self._drive(load, 1)
        limit_s = self._roofline.serial_s(load, self._ready.max_num_seqs)
        tokens = load.requests * load.output_tokens
        return ThroughputFigures(
            concurrency=load.concurrency,
            prompt_tokens=load.prompt_tokens,
            output_tokens=load.output_tokens,
            requests=load.requests,
            output_tokens_per_s=tokens / run.duration_s,
            limit_tokens_per_s=tokens / limit_s,
            of_limit=limit_s / run.duration_s,
            shares=self._roofline.shares(self._roofline.work(load, run.steps), run.duration_s),
            first_token_ms=spread_ms(run.first_token_s),
            inter_token_ms=spread_ms(run.inter_token_s),
            duration_s=run.duration_s,
            steps=run.steps,
            preemptions=run.preemptions,
        )

    def prefill(self, length: int, repeats: int) -> PrefillFigures:
        """One prompt alone, its first token included."""
        runs = self._drive(Load(prompt_tokens=length, output_tokens=1, requests=1, concurrency=1), repeats)
        seconds = statistics.median(run.first_token_s[0] for run in runs)
        work = self._roofline.prefill(length) + self._roofline.weights(1)
        limit_s = self._roofline.seconds(work)
        return PrefillFigures(
            prompt_tokens=length,
            repeats=repeats,
            tokens_per_s=length / seconds,
            limit_tokens_per_s=length / limit_s,
            of_limit=limit_s / seconds,
            shares=self._roofline.shares(work, seconds),
            first_token_ms=seconds * 1e3,
        )

    def _drive(self, load: Load, repeats: int) -> list[Run]:
        return [drive(self._built, load, self._rng) for _ in range(repeats)]
