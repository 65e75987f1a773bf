"""A soak of the engine core: thousands of mixed requests with random aborts, after which nothing may be left behind.

    python -m benchmarks.gpu.soak MODEL_DIR [--requests 10000] [--seed 0] [--device cuda] [--batch-invariant]

Dummy weights, a KV cache too small for the crowd (so that requests wait and are preempted), and every way to sample:
greedy, filtered, penalized, biased, with stop tokens, log-probabilities, several choices of one prompt, common prefixes
(watermarks and grammars are not among them). Every request that was not aborted must bring exactly its tokens; at the
end no block and no row is held, and device memory is what it was after the warm-up. With --batch-invariant some
requests are repeated alone and must bring the same tokens. Exits 1 with the first violation; the last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.soak_requests import Mixer, Request, problems
from config.engines import NativeSettings
from engines.native.build import BuiltCore, build_core
from engines.native.kv_cache import KVCacheShape
from engines.native.models import load_config
from engines.native.types import FINISH_STOP, AddSequence, TokenParams

CLIENT = b"soak"
WARM_UP_SHARE = 0.1  # of the requests: after these, memory must not grow
ALLOWED_GROWTH_BYTES = 4 * 2**20  # a leak of 1 KiB a request would be 10 MB over 10,000
BLOCK_SIZE = 16  # small, so that sequences grow into new blocks often
KV_TOKENS = 4_096  # little enough that some sequences are preempted; for all rows at once a block and one to grow


class Soak:
    """Drives a core; `violations` says what went wrong, in words."""

    def __init__(self, built: BuiltCore, open_requests: int) -> None:
        self._core = built.core
        self._ready = built.ready
        self._step = built.core.step_overlapped if built.overlapped else built.core.step
        self._open_requests = open_requests
        self.violations: list[str] = []
        self.most_running = 0

    def drive(self, requests: list[Request]) -> None:
        """All of them, `open_requests` at a time, until the core is idle; then check each."""
        waiting = iter(requests)
        running: dict[int, Request] = {}
        age: dict[int, int] = {}
        more = True
        while more or running:
            while more and len(running) < self._open_requests:
                request = next(waiting, None)
                if request is None:
                    more = False
                    break
                running[request.message.seq_id] = request
                age[request.message.seq_id] = 0
                self._core.add(CLIENT, request.message)
            self._advance(running)
            self._abort_due(running, age)
        while self._core.has_work:  # a step launched ahead
            if self._step():
                self.violations.append("outputs after every request had ended")
        for request in requests:
            self._check(request)
        stats = self._core.stats()
        if stats.kv_blocks_used or stats.running or stats.waiting:
            self.violations.append(f"held when idle: {stats}")

    def _advance(self, running: dict[int, Request]) -> None:
        for sequence, output in self._step():
            seq_id = sequence.key[1]
            request = running.get(seq_id)
            if request is None:
                self.violations.append(f"request {seq_id}: an output after its end")
                continue
            request.outputs.append(output)
            if output.finish:
                del running[seq_id]
        self.most_running = max(self.most_running, self._core.stats().running)

    def _abort_due(self, running: dict[int, Request], age: dict[int, int]) -> None:
        due = [seq_id for seq_id, r in running.items() if r.abort_after is not None and age[seq_id] >= r.abort_after]
        self._core.abort(CLIENT, tuple(due))
        for seq_id in due:
            running.pop(seq_id).aborted = True
        for seq_id in running:
            age[seq_id] += 1

    def _check(self, request: Request) -> None:
        for problem in problems(request, self._ready.vocab_size):
            self.violations.append(f"request {request.message.seq_id}: {problem}")


def check_rows(built: BuiltCore, soak: Soak) -> None:
    """That no row is held: as many short requests as there are rows must run in one step."""
    count = built.ready.max_num_seqs
    rows = Soak(built, open_requests=count)
    rows.drive(
        [Request(AddSequence(i, (i % built.ready.vocab_size,), TokenParams(max_tokens=4))) for i in range(count)]
    )
    soak.violations += rows.violations
    if rows.most_running != count:
        soak.violations.append(f"only {rows.most_running} of {count} rows are free when idle")


def check_twins(built: BuiltCore, soak: Soak, requests: list[Request]) -> int:
    """Repeat requests alone; where batches are invariant their tokens must be the same. Returns how many."""
    alone = Soak(built, open_requests=1)
    twins = [Request(request.message) for request in requests]
    alone.drive(twins)
    soak.violations += alone.violations
    for request, twin in zip(requests, twins, strict=True):
        if request.token_ids != twin.token_ids:
            soak.violations.append(f"request {request.message.seq_id}: other tokens alone than in the crowd")
    return len(twins)


def allocated_bytes() -> int:
    if not torch.cuda.is_available():
        return 0
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


def run_soak(built: BuiltCore, num_requests: int, seed: int, *, num_twins: int = 0) -> tuple[dict[str, Any], list[str]]:
    """Figures, and what was violated. Requests with several choices count once."""
    rng = random.Random(seed)
    mixer = Mixer(built.ready.vocab_size, built.ready.max_model_len, rng)
    soak = Soak(built, open_requests=built.ready.max_num_seqs * 5 // 4)
    started_s = time.perf_counter()
    num_warm = int(num_requests * WARM_UP_SHARE)
    warm = [sequence for _ in range(num_warm) for sequence in mixer.draw()]
    soak.drive(warm)
    check_rows(built, soak)
    before = allocated_bytes()
    sequences = [sequence for _ in range(num_requests - num_warm) for sequence in mixer.draw()]
    soak.drive(sequences)
    check_rows(built, soak)
    growth = allocated_bytes() - before
    if growth > ALLOWED_GROWTH_BYTES:
        soak.violations.append(f"{growth / 2**20:.1f} MiB of device memory more than after the warm-up")
    everything = warm + sequences
    duration_s = time.perf_counter() - started_s
    finished = [request for request in everything if request.ended]
    repeated = check_twins(built, soak, rng.sample(finished, num_twins)) if num_twins else 0
    stats = built.core.stats()
    figures = {
        "requests": num_requests,
        "sequences": len(everything),
        "aborted": sum(request.aborted for request in everything),
        "stopped": sum(request.outputs[-1].finish == FINISH_STOP for request in finished),
        "tokens": sum(len(request.token_ids) for request in everything),
        "preemptions": stats.preemptions,
        "prefix_cache_hit_tokens": stats.prefix_cache_hit_tokens,
        "repeated_alone": repeated,
        "most_running": soak.most_running,
        "memory_growth_bytes": growth,
        "duration_s": round(duration_s, 1),
    }
    return figures, soak.violations


def kv_bytes(folder: Path) -> int:
    """What KV_TOKENS take in bfloat16."""
    config = load_config(folder)
    shape = KVCacheShape(
        num_layers=config.num_layers, num_kv_heads=config.num_kv_heads, head_dim=config.head_dim,
        block_size=KV_TOKENS, dtype=torch.bfloat16,
    )  # fmt: skip
    return shape.block_bytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--batch-invariant", action="store_true", help="and repeat 200 requests alone")
    args = parser.parse_args()
    section = NativeSettings(
        model=args.model,
        device=args.device,
        load_format="dummy",
        max_model_len=1024,
        max_num_seqs=128,
        kv_cache_memory=str(kv_bytes(Path(args.model))),
        block_size=BLOCK_SIZE,
        batch_invariant=args.batch_invariant,
    )
    built = build_core(section, lambda *_: None)
    print(built.ready, flush=True)
    figures, violations = run_soak(built, args.requests, args.seed, num_twins=200 if args.batch_invariant else 0)
    for violation in violations[:20]:
        print("violated:", violation)
    print(json.dumps({"device": built.ready.device, **figures, "violations": len(violations)}))
    return int(bool(violations))


if __name__ == "__main__":
    raise SystemExit(main())
