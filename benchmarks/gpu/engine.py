"""The native engine without HTTP on one GPU: the standard workloads in one load, and a profile.

    python -m benchmarks.gpu.engine MODEL_DIR [--workloads 128,256,4,1 ...] [--profile FILE]

Dummy weights, random prompts, greedy, EOS ignored. A workload is input tokens, output tokens, requests, concurrency.
Prints a line a workload: output tokens/s and the share of the serial limit, TTFT and inter-token percentiles in ms;
the last line is JSON. `headrace bench` measures one shape at a time, with any weights.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict

import torch

from config.engines import NativeSettings
from engines.native.bench.drive import drive
from engines.native.bench.figures import Load
from engines.native.bench.limits import Limits, measure_limits
from engines.native.bench.measure import Bench
from engines.native.build import BuiltCore, build_core, prepare_device
from engines.native.distributed.ranks import other_ranks

WORKLOADS = ("128,256,4,1", "512,256,32,8", "1024,128,256,64", "1024,256,768,256", "512,512,512,512")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--workloads", nargs="*", default=WORKLOADS)
    parser.add_argument("--max-model-len", type=int, default=16384)
    parser.add_argument("--max-num-batched-tokens", type=int)
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--profile", help="write a torch profiler table of the first workload to this file")
    args = parser.parse_args()
    section = NativeSettings(
        model=args.model,
        load_format="dummy",
        max_model_len=args.max_model_len,
        max_num_batched_tokens=args.max_num_batched_tokens,
        tensor_parallel_size=args.tensor_parallel_size,
        quantize=args.quantize,
        kv_cache_dtype=args.kv_cache_dtype,
        prefix_caching=False,
    )
    limits = measure_limits(prepare_device(section))
    with other_ranks(section) as member:
        measure(build_core(section, lambda *_: None, member), limits, args)


def measure(built: BuiltCore, limits: Limits, args: argparse.Namespace) -> None:
    bench = Bench(built, limits)
    print(built.ready, limits, flush=True)
    bench.warm_up()
    loads = [Load(*map(int, workload.split(","))) for workload in args.workloads]
    results = []
    for load in loads:
        f = bench.throughput(load)
        results.append(asdict(f))
        print(
            f"{load.prompt_tokens:6} in {load.output_tokens:5} out c{load.concurrency:<4} "
            f"{f.output_tokens_per_s:9.1f} tok/s, "
            f"{f.of_limit:4.0%} of the limit, TTFT {f.first_token_ms.p50:.2f} / {f.first_token_ms.p99:.2f}, "
            f"inter-token {f.inter_token_ms.p50:.3f} / {f.inter_token_ms.p99:.3f}, {f.steps} steps",
            flush=True,
        )
    if args.profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            drive(built, loads[0], random.Random(99))
        table = profiler.key_averages().table(sort_by="cuda_time_total", row_limit=25, max_name_column_width=60)
        with open(args.profile, "w") as file:
            file.write(table)
    about = {"ready": built.ready.load_s, "device": built.ready.device, "limits": asdict(limits)}
    print(json.dumps({**about, "results": results}))


if __name__ == "__main__":
    main()
