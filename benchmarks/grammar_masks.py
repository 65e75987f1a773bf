"""What a step of constrained rows costs the host: their masks, and taking in their tokens. No model, no device.

Times are those of the thread, so that a machine's other work does not count.

Rows choose at random among what is allowed, as random weights do, which meets every length of a string and much white
space; or they follow JSON documents, as a model does. Grammars that end begin anew.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.native.grammar import vocabulary
from engines.native.grammar.compiler import GrammarCompiler
from engines.native.grammar.constraint import Choosing
from engines.native.tokenizer import Tokenizer
from engines.native.types import GrammarSpec

FORWARD_S = 0.006  # of a step of Qwen3-8B with 64 sequences on an H200: what masks may take and not be noticed

REGEX = GrammarSpec("regex", r"[A-Za-z0-9._%+-]{1,40}@[a-z0-9-]{1,30}\.(com|org|net)( [^\n]{0,200})?")
CHOICE = GrammarSpec("choice", json.dumps([f"{size} {kind}" for size in ("small", "large") for kind in "abcdefgh"]))
LARK = GrammarSpec(
    "lark",
    r"""start: sum
sum: product (("+" | "-") product)*
product: atom (("*" | "/") atom)*
atom: /[0-9]{1,9}(\.[0-9]{1,9})?/ | NAME | NAME "(" sum ("," sum)* ")" | "(" sum ")"
NAME: /[a-z_][a-z0-9_]{0,30}/
""",
)

Chooser = Callable[[int, NDArray[Any]], int]
"""The row's number and the ids allowed to the token it takes; -1: the row begins anew."""


class Times(NamedTuple):
    masks_s: list[float]  # of all rows of a step
    advances_s: list[float]

    def report(self) -> dict[str, Any]:
        totals = [mask + advance for mask, advance in zip(self.masks_s, self.advances_s, strict=True)]
        return {
            "masks_ms": _percentiles(self.masks_s),
            "advances_ms": _percentiles(self.advances_s),
            "step_ms": _percentiles(totals),
            "beyond_forward_ms": round(statistics.mean(max(0.0, total - FORWARD_S) for total in totals) * 1e3, 3),
        }


class Run(NamedTuple):
    num_rows: int
    num_steps: int
    library_slices: bool


def measure(folder: Path, endless: GrammarSpec, schemas: dict[str, GrammarSpec], run: Run) -> dict[str, Any]:
    """Each grammar with a compiler of its own. `folder` holds a tokenizer and the vocabulary's size in config.json."""
    if run.library_slices:
        vocabulary.SLICES = None
    tokenizer = Tokenizer.load(folder)
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    documents = [endless_document(seed, tokenizer) for seed in range(run.num_rows)]
    forms = {
        "endless, at random": (endless, at_random(0)),
        "endless, documents": (endless, following(documents)),
        "regex": (REGEX, at_random(1)),
        "choice": (CHOICE, at_random(2)),
        "lark": (LARK, at_random(3)),
        **{name: (spec, at_random(seed)) for seed, (name, spec) in enumerate(schemas.items())},
    }
    report: dict[str, Any] = {}
    for name, (spec, choose) in forms.items():
        compiler = GrammarCompiler(lambda: (tokenizer, frozenset()), vocab_size)
        vocabulary_s = compile_s(compiler, GrammarSpec("regex", "a"))
        compiled_s = compile_s(compiler, spec)
        times = run_steps(compiler, spec, run.num_rows, run.num_steps, choose).report()
        report[name] = {"vocabulary_ms": round(vocabulary_s * 1e3), "compile_ms": round(compiled_s * 1e3, 2), **times}
        print(f"{name:20} {json.dumps(report[name])}")
    return {"vocab_size": vocab_size, **run._asdict(), "forms": report}


def _percentiles(seconds: list[float]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(seconds, [50, 90, 99])
    values = {"mean": statistics.mean(seconds), "p50": p50, "p90": p90, "p99": p99, "max": max(seconds)}
    return {name: round(float(value) * 1e3, 3) for name, value in values.items()}


def compile_s(compiler: GrammarCompiler, spec: GrammarSpec) -> float:
    """Of the first request for a grammar; that for any also reads the vocabulary."""
    started = time.perf_counter()
    compiler.request(spec).result()
    return time.perf_counter() - started


def run_steps(compiler: GrammarCompiler, spec: GrammarSpec, num_rows: int, num_steps: int, choose: Chooser) -> Times:
    constraints = [compiler.request(spec).result() for _ in range(num_rows)]
    times = Times([], [])
    for _ in range(num_steps):
        choosing = [Choosing(row, constraint, frozenset()) for row, constraint in enumerate(constraints)]
        started = time.thread_time()
        masks = compiler.masks(choosing)
        times.masks_s.append(time.thread_time() - started)
        tokens = [choose(row, np.flatnonzero(bits)) for row, bits in enumerate(_unpacked(masks.bits))]
        started = time.thread_time()
        ended = [constraint.advance(token) != "open" for constraint, token in zip(constraints, tokens, strict=True)]
        times.advances_s.append(time.thread_time() - started)
        for row in np.flatnonzero(ended).tolist():
            constraints[row] = compiler.request(spec).result()
    return times


def _unpacked(bits: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for row in bits:
        yield np.unpackbits(row.view(np.uint8), bitorder="little")


def at_random(seed: int) -> Chooser:
    rng = np.random.default_rng(seed)
    return lambda _, allowed: int(rng.choice(allowed))


def following(documents: list[list[int]]) -> Chooser:
    """Token by token, each row its own document, which is longer than the run."""
    rows = [iter(document) for document in documents]

    def choose(row: int, allowed: NDArray[Any]) -> int:
        token = next(rows[row])
        assert token in allowed, "the document is not of the grammar"
        return token

    return choose


def endless_document(seed: int, tokenizer: Tokenizer) -> list[int]:
    """Of the schema ENDLESS, as a model writes it: words, no more white space than json.dumps leaves."""
    rng = random.Random(seed)
    words = [
        "the",
        "order",
        "of",
        "Ada",
        "Lovelace",
        "was",
        "shipped",
        "on",
        "Monday",
        "by",
        "a",
        "large",
        "green",
        "van",
        "from",
        "Zürich",
        "東京",
        "№7",
        "(fragile)",
    ]
    items = [
        {
            "id": rng.randrange(10**6),
            "name": " ".join(rng.choices(words, k=rng.randint(1, 9)))[:40],
            "kind": rng.choice(["small", "large", "unknown"]),
            "scores": [round(rng.random() * 100, 2) for _ in range(rng.randrange(5))],
            "checked": rng.random() < 0.5,
        }
        for _ in range(100)
    ]
    return tokenizer.encode(json.dumps(items, ensure_ascii=False), False)
