"""How fast the CPU kernels are at the shapes of SmolLM2-135M, beside torch's own operators.

    python benchmarks/cpu_kernels.py [--repeats 15]

Prints milliseconds per decode step (the 30 layers and, for the matrix products of a decode, the head) as
"median (best)", then everything as one line of JSON. Weights and caches are random and laid out once per layer, so that
each step reads them from memory as a model does. The rows of a table are measured in turns, not one after the other:
noise of a shared machine falls on all of them.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from engines.native.kernels import cpu_attention, cpu_fused, cpu_linear, reference
from engines.native.kernels.cpu_team import TEAM
from engines.native.layers.attention_metadata import AttentionMetadata

NUM_LAYERS, HIDDEN, INTERMEDIATE, VOCAB = 30, 576, 1536, 49152
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE = 9, 3, 64, 16
LAYER_SHAPES = [(960, HIDDEN), (HIDDEN, HIDDEN), (2 * INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)]
BATCHES = (1, 8, 32)
SETTLE_S = 0.02  # torch's threads spin for milliseconds after its operators, and would slow the next row
Measured = dict[str, dict[str, float]]


def measure(table: dict[str, Callable[[], object]], repeats: int) -> Measured:
    """Milliseconds of each row: median and best of so many turns after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in table}
    for turn in range(repeats + 1):
        for name, step in table.items():
            time.sleep(SETTLE_S)
            start = time.perf_counter()
            step()
            if turn > 0:
                seconds[name].append(time.perf_counter() - start)
    return {
        name: {"median_ms": round(statistics.median(times) * 1e3, 3), "best_ms": round(min(times) * 1e3, 3)}
        for name, times in seconds.items()
    }


def run_each(operator: Callable[[Any], object], layers: Sequence[Any]) -> None:
    """One operator on each layer, results dropped at once as a model drops them."""
    for layer in layers:
        operator(layer)


def linear_table(num_tokens: int, with_head: bool) -> dict[str, Callable[[], object]]:
    shapes = LAYER_SHAPES * NUM_LAYERS + [(VOCAB, HIDDEN)] * with_head
    weights = [torch.randn(shape) * 0.05 for shape in shapes]
    inputs = {size: torch.randn(num_tokens, size) for size in (HIDDEN, INTERMEDIATE)}

    def packed(dtype: torch.dtype, bfloat16_products: bool = False) -> Callable[[], object]:
        matrices = [cpu_linear.pack_weight(weight, dtype, bfloat16_products=bfloat16_products) for weight in weights]
        return lambda: run_each(lambda matrix: cpu_linear.linear(inputs[matrix.num_columns], matrix), matrices)

    def torchs(dtype: torch.dtype) -> Callable[[], object]:
        matrices, rows = [weight.to(dtype) for weight in weights], {k: x.to(dtype) for k, x in inputs.items()}
        return lambda: run_each(lambda matrix: functional.linear(rows[matrix.shape[1]], matrix), matrices)

    return {
        "linear, bfloat16 products": packed(torch.bfloat16, bfloat16_products=True),
        "linear, packed bfloat16": packed(torch.bfloat16),
        "linear, packed float16": packed(torch.float16),
        "linear, packed float32": packed(torch.float32),
        "linear, torch bfloat16": torchs(torch.bfloat16),
        "linear, torch float32": torchs(torch.float32),
    }


def cached_layers(query_len: int, context: int, batch: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(q, key cache, value cache) of each layer."""
    num_blocks = batch * -(-context // BLOCK_SIZE)
    shape = (num_blocks, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM)
    q = torch.randn(batch * query_len, NUM_HEADS, HEAD_DIM)
    return [(q, torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)) for _ in range(NUM_LAYERS)]


def attention_table(query_len: int, context: int, batch: int, with_torch: bool) -> dict[str, Callable[[], object]]:
    blocks = -(-context // BLOCK_SIZE)
    metadata = AttentionMetadata(
        query_start_loc=torch.arange(batch + 1, dtype=torch.int32) * query_len,
        seq_lens=torch.full((batch,), context, dtype=torch.int32),
        block_tables=torch.randperm(batch * blocks).int().view(batch, blocks),
        slot_mapping=torch.full((batch * query_len,), -1),
        num_decodes=batch if query_len == 1 else 0,
        max_query_len=query_len,
        max_seq_len=context,
    )
    scale = HEAD_DIM**-0.5

    def paged(dtype: torch.dtype) -> Callable[[], object]:
        layers = cached_layers(query_len, context, batch, dtype)
        return lambda: run_each(
            lambda layer: cpu_attention.paged_attention(layer[0], layer[1], layer[2], metadata, scale), layers
        )

    table = {"attention, bfloat16 cache": paged(torch.bfloat16), "attention, float32 cache": paged(torch.float32)}
    if with_torch:
        heads = torch.randn(3, batch, NUM_HEADS, context, HEAD_DIM)
        attend = functools.partial(functional.scaled_dot_product_attention, *heads, is_causal=True)
        table["attention, torch without pages"] = lambda: run_each(lambda _: attend(), range(NUM_LAYERS))
    return table


def fused_table(num_tokens: int) -> dict[str, Callable[[], object]]:
    x, residual, weight = torch.randn(num_tokens, HIDDEN), torch.randn(num_tokens, HIDDEN), torch.randn(HIDDEN)
    gate_up = torch.randn(num_tokens, 2 * INTERMEDIATE)
    qkv = torch.randn(num_tokens, (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM)
    slots, table = torch.arange(num_tokens), torch.randn(2048, HEAD_DIM)
    caches = [torch.zeros(64, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM, dtype=torch.bfloat16) for _ in range(2)]
    rope_rest = (slots, table, None, None, 1e-5, *caches, slots, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM)

    def of(kernels) -> Callable[[], object]:  # a module of kernels: the fused ones or the reference
        def step() -> None:
            for _ in range(NUM_LAYERS):
                kernels.add_rms_norm(x, residual, weight, 1e-5)
                kernels.rope_and_cache(qkv, *rope_rest)
                kernels.add_rms_norm(x, residual, weight, 1e-5)
                kernels.silu_and_mul(gate_up)

        return step

    return {"norms, rope, silu": of(cpu_fused), "norms, rope, silu, torch": of(reference)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="turns per row (default 15)")
    repeats = parser.parse_args().repeats
    results: dict[str, Measured] = {}

    def report(title: str, table: dict[str, Callable[[], object]], turns: int = repeats) -> None:
        results[title] = measure(table, turns)
        for name, row in results[title].items():
            print(f"{title:<28} {name:<32} {row['median_ms']:>9.2f} ({row['best_ms']:.2f})", flush=True)

    with torch.inference_mode():
        for batch in BATCHES:
            report(f"batch {batch}", linear_table(batch, with_head=True))
            report(f"batch {batch}, small", fused_table(batch))
            for context in (128, 600):
                report(f"batch {batch}, context {context}", attention_table(1, context, batch, with_torch=False))
        report("prompt of 512", linear_table(512, with_head=False), turns=max(repeats // 5, 1))
        report("prompt of 512, small", fused_table(512), turns=max(repeats // 5, 1))
        report("prompt of 512, attention", attention_table(512, 512, 1, with_torch=True), turns=max(repeats // 5, 1))
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    machine |= {"threads": TEAM.num_threads, "torch": torch.__version__, "load_average": os.getloadavg()[0]}
    print(json.dumps({"machine": machine, "results": results}))


if __name__ == "__main__":
    main()
