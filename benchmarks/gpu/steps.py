"""What a step takes by its decodes and its prompt tokens: the engine's own graphs, at sizes of one's choice.

    python -m benchmarks.gpu.steps MODEL_DIR [--decodes 64,1088 256,1152] [--totals 512 576 ...]
        [--blas cublas cublaslt] [--profile DECODES,TOTAL ...] [--output FILE]

Dummy weights. A step has so many decodes, each of a sequence so long, and chunks of new prompts up to so many tokens in
all (`total`: the rows of its products); no chunk at all if total is the number of decodes. Times are medians of
replays, among them some for a third of a second each, so that clocks and power settle as they do under load. Prints a
table; writes a JSON line for every step to FILE, and the kernels of the profiled ones beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from config.engines import NativeSettings
from engines.native.build import build_core
from engines.native.chunk_graphs import ChunkGraphs
from engines.native.cuda_graphs import DecodeGraphs, GraphContext, StepGraph
from engines.native.types import BatchPlan

LASTING_MS = 300.0
PROMPT = 1024  # tokens of a new prompt: a larger chunk is of several


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--decodes", nargs="+", default=["64,1088", "256,1152"])
    parser.add_argument("--totals", nargs="+", type=int, default=[512, 576, 1024, 1088, 2048, 2112])
    parser.add_argument("--blas", nargs="+", default=["default"], choices=["default", "cublas", "cublaslt"])
    parser.add_argument("--profile", nargs="*", default=[])
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    section = NativeSettings(
        model=str(args.model), load_format="dummy", max_model_len=2048, max_num_batched_tokens=8192
    )
    runner = build_core(section, lambda *_: None).runner
    assert runner._graphs is not None
    context = runner._graphs._context
    lines: list[dict[str, Any]] = []
    with torch.inference_mode():
        for library in args.blas:
            torch.backends.cuda.preferred_blas_library(library)
            for decodes, length in (map(int, pair.split(",")) for pair in args.decodes):
                fill(context, decodes, length)
                for total in [decodes, *(total for total in args.totals if total > decodes)]:
                    graph = captured(context, decodes, length, total)
                    line = {"model": args.model.name, "blas": library, "decodes": decodes, "length": length,
                            "total": total, "ms": round(replay_ms(graph), 3)}  # fmt: skip
                    if total > decodes:
                        line["us_per_prompt_token"] = round(1e3 * line["ms"] / (total - decodes), 2)
                    lines.append(line)
                    print(json.dumps(line), flush=True)
                    if f"{decodes},{total}" in args.profile and library == args.blas[0]:
                        print(kernels(graph, args.output, f"{args.model.name}-{decodes}-{total}"), flush=True)
                    del graph
    if args.output:
        args.output.write_text("".join(json.dumps(line) + "\n" for line in lines))


def fill(context: GraphContext, decodes: int, length: int) -> None:
    """Random tokens and blocks of their own for `decodes` rows of `length` tokens, and for new prompts behind them."""
    rows = context.rows
    rows.token_table[: rows.scratch_row].random_(0, context.model.config.vocab_size)
    blocks = torch.randperm(context.cache.num_blocks, device=rows.device).int()
    for first, last, tokens in ((0, decodes, length + 1), (decodes, rows.scratch_row, PROMPT)):
        width = -(-tokens // rows.block_size)
        count = min(last - first, len(blocks) // width)
        rows.block_tables[first : first + count, :width] = blocks[: count * width].view(count, width)
        blocks = blocks[count * width :]


def captured(context: GraphContext, decodes: int, length: int, total: int) -> StepGraph:
    """The step's graph, with its inputs in place."""
    if total == decodes:
        graphs = DecodeGraphs(context)
        graphs.capture([decodes])
        return graphs.replay(list(range(decodes)), [length - 1] * decodes)
    chunks = ChunkGraphs(context)
    chunks._graphs[decodes, total - decodes] = chunks._capture_one(decodes, total - decodes)
    left = total - decodes
    prompts = [min(PROMPT, left - at) for at in range(0, left, PROMPT)]
    plan = BatchPlan(
        rows=list(range(decodes + len(prompts))),
        starts=[length - 1] * decodes + [0] * len(prompts),
        num_tokens=[1] * decodes + prompts,
        samples=[True] * (decodes + len(prompts)),
        num_decodes=decodes,
    )
    return chunks.replay(plan, (decodes, left))[0]


def replay_ms(graph: StepGraph) -> float:
    def once() -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.forward.replay()
        graph.sample.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    first = [once() for _ in range(3)][-1]
    return statistics.median(once() for _ in range(max(5, int(LASTING_MS / first))))


def kernels(graph: StepGraph, output: Path | None, name: str) -> str:
    """Where a replay's time goes: kernels by their sum."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        graph.forward.replay()
        graph.sample.replay()
        torch.cuda.synchronize()
    table = profiler.key_averages().table(sort_by="cuda_time_total", row_limit=20, max_name_column_width=70)
    if output:
        (output.parent / f"{name}.kernels.txt").write_text(table)
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)[:14]
    return "\n".join(
        f"    {event.self_device_time_total / 1e3:8.3f} ms {event.count:5} x {event.key[:90]}" for event in events
    )


if __name__ == "__main__":
    main()
