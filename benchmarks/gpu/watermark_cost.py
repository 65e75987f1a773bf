"""What a watermark costs a full batch of decodes: throughput of the core with every request marked, against none.

    python -m benchmarks.gpu.watermark_cost MODEL_DIR [--concurrency 64] [--output-tokens 256] [--rounds 3]

Dummy weights, prompts of 128 random tokens, temperature 1.0. Schemes take turns, so that a machine's moods meet all
alike. Prints a line a scheme; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time

from config.engines import NativeSettings
from engines.native.build import BuiltCore, build_core
from engines.native.types import (
    GREEN_LIST,
    GREEN_LIST_SELF,
    GUMBEL,
    SYNTHID,
    AddSequence,
    TokenParams,
    Watermark,
)

SCHEMES = {
    "none": None,
    "left-hash": Watermark(GREEN_LIST, 15485863, 1, threshold=1 << 31, delta=2.0),
    "self-hash": Watermark(GREEN_LIST_SELF, 15485863, 4, threshold=1 << 31, delta=2.0),
    "gumbel": Watermark(GUMBEL, 15485863, 4),
    "synthid": Watermark(SYNTHID, 15485863, 4, depth=30),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    section = NativeSettings(model=args.model, load_format="dummy", max_model_len=4096, prefix_caching=False)
    built = build_core(section, lambda *_: None)
    rates: dict[str, list[float]] = {name: [] for name in SCHEMES}
    for round_ in range(args.rounds + 1):  # the first warms up
        for name, watermark in SCHEMES.items():
            rate = throughput(built, args.concurrency, args.output_tokens, watermark)
            if round_:
                rates[name].append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, rate in medians.items():
        print(f"{name:10} {rate:9.1f} tok/s, {rate / medians['none']:.1%} of unmarked")
    tokens_per_s = {name: round(rate, 1) for name, rate in medians.items()}
    print(json.dumps({"model": args.model, "device": built.ready.device, "concurrency": args.concurrency,
                      "output_tokens": args.output_tokens, "tokens_per_s": tokens_per_s}))  # fmt: skip


def throughput(built: BuiltCore, concurrency: int, output_tokens: int, watermark: Watermark | None) -> float:
    """Generated tokens a second of a whole batch, its prompts included."""
    rng = random.Random(0)
    for number in range(concurrency):
        prompt = tuple(rng.randrange(1000, built.ready.vocab_size - 1000) for _ in range(128))
        params = TokenParams(max_tokens=output_tokens, temperature=1.0, seed=number, watermark=watermark)
        built.core.add(b"benchmark", AddSequence(number, prompt, params))
    step = built.core.step_overlapped if built.overlapped else built.core.step
    started = time.perf_counter()
    while built.core.has_work:
        step()
    return concurrency * output_tokens / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
