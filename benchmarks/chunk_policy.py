"""The scheduler against a simulated GPU: what a rule for the size of prompt chunks does to throughput and latency.

    python -m benchmarks.chunk_policy STEPS.jsonl [--loads 1024,128,256,64 ...] [--models qwen3-8b ...]
        [--target-ms 50] [--sums-ms 0]

STEPS.jsonl is what benchmarks/gpu/steps.py measured: milliseconds of a step by its decodes and its rows in all, for a
smaller and a larger number of decodes. A load is prompt tokens, output tokens, requests, concurrency, closed loop. The
engine's own scheduler, core and ChunkSizer run on the simulated clock; a line for the rule as it is and for others. A
model split over ranks is a part of it, such as half the heads and channels, and its sums take --sums-ms more of a step
of 512 rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from engines.native import chunking
from engines.native.bench.drive import percentile
from engines.native.block_pool import BlockPool
from engines.native.chunk_graphs import DECODES, TOTALS
from engines.native.chunking import ChunkSizer, StepSizes
from engines.native.core import EngineCore
from engines.native.scheduler import Scheduler, SchedulerLimits
from engines.native.types import AddSequence, BatchPlan, SampledTokens, TokenParams

LOADS = ("512,256,32,8", "1024,128,256,64", "1024,256,768,256", "512,512,512,512", "8192,128,128,64")
CAPTURED = {"qwen3-8b": 1024, "half-32b": 2048}  # the largest step that has a graph; all have where nothing is said
# share of the target that prompts get in any case, tokens a decode, steps over which a burst is spread, and the number
# of decodes from which it is not
RULES: dict[str, tuple[float, int, int, int]] = {
    "as it is": (
        *(chunking._LEAST_SHARE, chunking._TOKENS_PER_DECODE),
        *(chunking._SPREAD_STEPS, chunking._CHEAP_ROWS),
    ),
    "all the target allows": (1.0, 0, 1, 0),
    "a burst over 64 steps": (0.15, 4, 64, 1 << 30),
    "a burst over 8 steps": (0.15, 0, 8, 1 << 30),
    "2 tokens a decode": (0.15, 2, 64, 192),
    "always 30% of the target": (0.3, 0, 1 << 30, 1 << 30),
}


class StepTimes:
    """Interpolates between measured steps: rows through the products, and cached tokens through attention."""

    def __init__(self, lines: list[dict[str, Any]], sums_ms: float = 0.0) -> None:
        """sums_ms: of several ranks, for 512 rows."""
        largest = CAPTURED.get(lines[0]["model"], TOTALS[-1])
        self.sizes = StepSizes(DECODES, [total for total in TOTALS if total <= largest])
        measured = sorted({(line["decodes"], line["length"]) for line in lines if line["decodes"] >= 8})
        few, many = measured[0], measured[-1]
        of_few, of_many = (
            {line["total"]: line["ms"] for line in lines if (line["decodes"], line["length"]) == pair}
            for pair in (few, many)
        )
        # Beside prompts, of the same rows: alone, more decodes are more rows too.
        added = [of_many[total] - of_few[total] for total in of_few if total > many[0] and total in of_many]
        self._token_ms = statistics.mean(added) / (many[0] * many[1] - few[0] * few[1]) if many != few else 0.0
        rows = {total: ms + sums_ms * total / 512 for total, ms in of_few.items()}
        self._rows = sorted(rows)
        self._ms = [rows[count] - self._token_ms * few[0] * few[1] for count in self._rows]

    def ms(self, plan: BatchPlan) -> float:
        chunk = sum(plan.num_tokens[plan.num_decodes :])
        padded = self.sizes.at_least(plan.num_decodes, chunk) if chunk else 0
        return self._rows_ms(plan.num_decodes + padded) + self._token_ms * sum(plan.starts[: plan.num_decodes])

    def _rows_ms(self, rows: int) -> float:
        last = min(max(bisect_left(self._rows, rows), 1), len(self._rows) - 1)
        x0, x1, y0, y1 = *self._rows[last - 1 : last + 1], *self._ms[last - 1 : last + 1]
        return max(self._ms[0], y0 + (y1 - y0) * (rows - x0) / (x1 - x0))


class SimulatedRunner:
    """Satisfies `engines.native.core.Runner`; time passes when a step is launched."""

    def __init__(self, times: StepTimes) -> None:
        self._times = times
        self.now_s = 0.0

    def launch(self, plan: BatchPlan) -> int:
        if plan.rows:
            self.now_s += self._times.ms(plan) / 1e3
        return sum(plan.samples)

    def choose(self, *_: object) -> None: ...

    def collect(self, launched: int) -> SampledTokens:
        return SampledTokens([0] * launched)


def simulate(times: StepTimes, load: tuple[int, int, int, int], target_s: float) -> dict[str, float]:
    prompt, output, requests, concurrency = load
    runner = SimulatedRunner(times)
    sizer = ChunkSizer(target_s, largest=TOTALS[-1], sizes=times.sizes)
    limits = SchedulerLimits(max_num_seqs=512, max_num_batched_tokens=8192, max_prefill_tokens=TOTALS[-1])
    core = EngineCore(
        Scheduler(BlockPool(1 << 16, 64, caching=False), limits, sizer), runner, sizer, clock=lambda: runner.now_s
    )
    began: list[float] = []
    came: list[list[float]] = [[] for _ in range(requests)]
    finished = steps = 0
    while finished < requests:
        while len(began) < min(requests, finished + concurrency):
            core.add(b"", AddSequence(len(began), (1,) * prompt, TokenParams(max_tokens=output, temperature=0.0)))
            began.append(runner.now_s)
        for sequence, out in core.step():
            came[sequence.key[1]].append(runner.now_s)
            finished += bool(out.finish)
        steps += 1
    first = [line[0] - start for line, start in zip(came, began, strict=True)]
    between = [b - a for line in came for a, b in pairwise(line)]
    return {
        "tokens_per_s": requests * output / runner.now_s,
        **{f"ttft_p{p}_ms": percentile(first, p / 100) * 1e3 for p in (50, 99)},
        **{f"itl_p{p}_ms": percentile(between, p / 100) * 1e3 for p in (50, 99)},
        "steps": steps,
    }


def runs(times: StepTimes, loads: list[str], target_s: float) -> Iterator[tuple[str, str, dict[str, float]]]:
    for load in loads:
        prompt, output, requests, concurrency = map(int, load.split(","))
        for name, rule in RULES.items():
            chunking._LEAST_SHARE, chunking._TOKENS_PER_DECODE = rule[:2]
            chunking._SPREAD_STEPS, chunking._CHEAP_ROWS = rule[2:]
            yield load, name, simulate(times, (prompt, output, requests, concurrency), target_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", type=Path)
    parser.add_argument("--loads", nargs="+", default=LOADS)
    parser.add_argument("--models", nargs="+", default=["qwen3-8b", "qwen3-0.6b"])
    parser.add_argument("--target-ms", type=float, default=50.0, help="see prefill_target_ms")
    parser.add_argument("--sums-ms", type=float, default=0.0)
    args = parser.parse_args()
    lines = [json.loads(line) for line in args.steps.read_text().splitlines()[1:]]
    print("tokens/s; TTFT p50, p99 and inter-token p50, p99 in ms; steps")
    for model in args.models:
        times = StepTimes([line for line in lines if line["model"] == model], args.sums_ms)
        for load, name, found in runs(times, args.loads, args.target_ms / 1e3):
            latency = " / ".join(f"{found[key]:6.1f}" for key in found if key.endswith("_ms"))
            print(
                f"{model:12} {load:18} {name:26} {found['tokens_per_s']:8.0f} {latency} {found['steps']:6}", flush=True
            )


if __name__ == "__main__":
    main()
