"""The options of `headrace bench`: flags to a plan. A flag that the chosen measurement does not read is refused."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.native.bench.figures import BenchPlan, What

_WHAT: Mapping[str, tuple[What, ...]] = {
    "latency": ("latency",),
    "throughput": ("throughput",),
    "prefill": ("prefill",),
    "all": ("latency", "throughput", "prefill"),
}
_READ_BY: Mapping[str, tuple[What, ...]] = {
    "prompt_tokens": ("latency", "throughput"),
    "output_tokens": ("latency", "throughput"),
    "batch_size": ("latency",),
    "concurrency": ("throughput",),
    "requests": ("throughput",),
    "lengths": ("prefill",),
    "repeats": ("latency", "prefill"),
    "plot": ("throughput",),
}


@dataclass(frozen=True, slots=True)
class BenchArguments:
    """What to measure, and where the picture goes, if anywhere."""

    plan: BenchPlan
    plot: Path | None


def add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    default = BenchPlan(())
    parser.add_argument(
        "what",
        choices=list(_WHAT),
        help="latency: one batch that arrives together. throughput: many requests at several levels of concurrency. "
        "prefill: prompts of several lengths, one at a time. all: each of them.",
    )
    group = parser.add_argument_group("measurements")
    add = group.add_argument
    absent = argparse.SUPPRESS
    add("--prompt-tokens", metavar="N", default=absent, help=f"Prompt of each request. [{default.prompt_tokens}]")
    add("--output-tokens", metavar="N", default=absent, help=f"Output of each request. [{default.output_tokens}]")
    add("--batch-size", metavar="N", default=absent, help=f"latency: requests at once. [{default.batch_size}]")
    levels = ",".join(map(str, default.concurrency))
    add("--concurrency", metavar="N,N,...", default=absent, help=f"throughput: open requests at each level. [{levels}]")
    add("--requests", metavar="N", default=absent, help="throughput: at each level. Default: twice it, at least 4.")
    add("--lengths", metavar="N,N,...", default=absent, help="prefill: tokens. Default: 128 to 8192, as far as fits.")
    add("--repeats", metavar="N", default=absent, help=f"latency, prefill: the median counts. [{default.repeats}]")
    add("--plot", metavar="FILE.png", default=absent, help="throughput: a picture of latency against load.")


def bench_arguments(arguments: argparse.Namespace) -> BenchArguments:
    """Raises ValueError naming the flag and what it should be."""
    what = _WHAT[arguments.what]
    given: dict[str, str] = {name: value for name, value in vars(arguments).items() if name in _READ_BY}
    for name in given:
        if not set(_READ_BY[name]) & set(what):
            raise ValueError(f"{_flag(name)} is an option of {' and '.join(_READ_BY[name])}, not of {arguments.what}")
    plot = _plot(given.pop("plot")) if "plot" in given else None
    fields: dict[str, Any] = {
        name: _numbers(name, text) if name in ("concurrency", "lengths") else _number(name, text)
        for name, text in given.items()
    }
    if fields.get("output_tokens", 2) < 2:
        raise ValueError("--output-tokens must be at least 2: there is nothing between fewer tokens to measure")
    return BenchArguments(BenchPlan(what, **fields), plot)


def _number(name: str, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError(f"{_flag(name)} takes whole numbers of at least 1 (got {text!r})")
    return number


def _numbers(name: str, text: str) -> tuple[int, ...]:
    return tuple(_number(name, part) for part in text.split(","))


def _plot(text: str) -> Path:
    """Checked before anything is measured, not after."""
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise ValueError(f"--plot writes PNG: name a file that ends in .png (got {text!r})")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"--plot cannot write into {path.parent}: not a folder, or not yours to write to")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs the package matplotlib; install Headrace with its extra [bench]")
    return path


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
