"""The native engine without HTTP on one GPU: the standard workloads, straight into the core.

    python -m benchmarks.gpu.engine MODEL_DIR [--workloads 128,256,4,1 ...] [--check]

Dummy weights, random prompts, greedy, EOS ignored. Prints a line a workload (input, output, requests, concurrency):
output tokens/s, TTFT and inter-token percentiles in ms, and where the host's time goes; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass, field

import torch

from config.engines import NativeSettings
from engines.native.build import BuiltCore, build_core
from engines.native.types import AddSequence, TokenParams

WORKLOADS = ("128,256,4,1", "512,256,32,8", "1024,128,256,64", "1024,256,768,256", "512,512,512,512")


@dataclass
class Timeline:
    submitted: float
    tokens: list[float] = field(default_factory=list)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def run(built: BuiltCore, workload: str, seed: int) -> dict[str, object]:
    num_input, num_output, num_requests, concurrency = map(int, workload.split(","))
    rng = random.Random(seed)
    vocab = built.ready.vocab_size - 1000
    prompts = [[rng.randrange(vocab) for _ in range(num_input)] for _ in range(num_requests)]
    step = built.core.step_overlapped if built.overlapped else built.core.step
    timelines: dict[int, Timeline] = {}
    submitted = finished = steps = 0
    started = time.perf_counter()
    while finished < num_requests:
        while submitted < num_requests and submitted - finished < concurrency:
            params = TokenParams(max_tokens=num_output, temperature=0.0, seed=submitted)
            built.core.add(b"bench", AddSequence(submitted, tuple(prompts[submitted]), params))
            timelines[submitted] = Timeline(time.perf_counter())
            submitted += 1
        outputs = step()
        steps += 1
        now = time.perf_counter()
        for sequence, output in outputs:
            timelines[sequence.key[1]].tokens.append(now)
            finished += bool(output.finish)
    torch.cuda.synchronize()
    duration = time.perf_counter() - started
    first = [line.tokens[0] - line.submitted for line in timelines.values()]
    gaps = [b - a for line in timelines.values() for a, b in zip(line.tokens, line.tokens[1:], strict=False)]
    return {
        "workload": workload,
        "output_throughput": round(num_requests * num_output / duration, 1),
        "median_ttft_ms": round(percentile(first, 0.5) * 1e3, 2),
        "p99_ttft_ms": round(percentile(first, 0.99) * 1e3, 2),
        "median_itl_ms": round(percentile(gaps, 0.5) * 1e3, 3),
        "p99_itl_ms": round(percentile(gaps, 0.99) * 1e3, 3),
        "steps": steps,
        "duration": round(duration, 3),
        "preemptions": built.core.stats().preemptions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--workloads", nargs="*", default=WORKLOADS)
    parser.add_argument("--max-model-len", type=int, default=16384)
    parser.add_argument("--max-num-batched-tokens", type=int)
    parser.add_argument("--profile", help="write a torch profiler table of the first workload to this file")
    args = parser.parse_args()
    section = NativeSettings(
        model=args.model,
        load_format="dummy",
        max_model_len=args.max_model_len,
        max_num_batched_tokens=args.max_num_batched_tokens,
        prefix_caching=False,
    )
    built = build_core(section, lambda *_: None)
    print(built.ready, flush=True)
    run(built, "64,32,8,8", seed=0)
    results = []
    for seed, workload in enumerate(args.workloads, 1):
        results.append(run(built, workload, seed))
        print(results[-1], flush=True)
    if args.profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            run(built, args.workloads[0], seed=99)
        table = profiler.key_averages().table(sort_by="cuda_time_total", row_limit=25, max_name_column_width=60)
        with open(args.profile, "w") as file:
            file.write(table)
    print(json.dumps({"ready": built.ready.load_s, "device": built.ready.device, "results": results}))


if __name__ == "__main__":
    main()
