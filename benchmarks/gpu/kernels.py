"""Numerics and times of the CUDA path's kernels on one GPU, each beside its floor and a library's time.

    python -m benchmarks.gpu.kernels [--sections linear,attention,...] [--only REGEX] [--output FILE]

--only: kernels and shapes that hold this regular expression.

Compiles everything in parallel first, then checks and times; prints a short table last, and writes a JSON line for
every measurement to FILE. A floor is bytes / 3.0 TB/s or operations / 780 TFLOP/s, whichever is longer. The error is
the norm of the difference from the plain PyTorch twin in float32, over the norm of that.
"""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton
from torch import Tensor

from benchmarks.gpu.timing import graph_us
from engines.native.bench.limits import measure_limits

BYTES_PER_S = 3.0e12
FLOPS_PER_S = 7.8e14
SECTIONS = ("fused", "attention", "sampler", "linear", "quant", "chain")


@dataclass(frozen=True, slots=True)
class Built:
    """Calls to rotate over, each with inputs of its own, and what the first should return (None: not checked)."""

    calls: Sequence[Callable[[], object]]
    expected: Callable[[], Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement: `build(warm)` allocates the inputs (of one call only, if warming)."""

    section: str
    kernel: str
    shape: str
    variant: str  # candidates of one (kernel, shape) differ in this
    num_bytes: float
    flops: float
    build: Callable[[bool], Built]
    compile_key: str = ""  # cases of one key run the same compiled kernels; "" compiles nothing
    launches: int = 24
    per: int = 1  # units of work in a call: the printed time is that of one

    @property
    def floor_us(self) -> float:
        return max(self.num_bytes / BYTES_PER_S, self.flops / FLOPS_PER_S) * 1e6 / self.per


@dataclass(frozen=True, slots=True)
class Result:
    section: str
    kernel: str
    shape: str
    variant: str
    us: float
    floor_us: float
    relative_error: float | None = None
    failure: str = ""


def cases_of(section: str, only: str) -> Iterator[Case]:
    """`only`: a regular expression that a case's kernel and shape must hold."""
    cases = importlib.import_module(f"benchmarks.gpu.cases_{section}").cases()
    return (case for case in cases if re.search(only, f"{case.kernel} {case.shape}"))


def run_children(section_lists: list[list[str]], arguments: list[list[str]]) -> None:
    """This script in child processes at once: a fault on the GPU ends one child, not the run."""
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.kernels", "--sections", ",".join(sections), *more],
            stderr=subprocess.PIPE,
            text=True,
        )
        for sections, more in zip(section_lists, arguments, strict=True)
    ]
    for child, sections in zip(children, section_lists, strict=True):
        _, errors = child.communicate()
        if child.returncode or "Error" in errors:
            print(f"{','.join(sections)}: {errors[-300:]}", flush=True)


def compile_share(cases: list[Case], share: str) -> None:
    """Fill Triton's cache with every N-th of the distinct compilations, by running it once."""
    index, count = map(int, share.split("/"))
    distinct = {case.compile_key: case for case in cases if case.compile_key}
    for case in list(distinct.values())[index::count]:
        try:
            case.build(True).calls[0]()
            torch.cuda.synchronize()
        except Exception as error:
            print(f"{case.kernel} {case.shape} {case.variant}: {error!r:.300}", file=sys.stderr)


def measure(case: Case) -> Result:
    named = (case.section, case.kernel, case.shape, case.variant)
    try:
        built = case.build(False)
        difference = None
        if built.expected is not None:
            expected, got = built.expected().double(), built.calls[0]()
            assert isinstance(got, Tensor)
            difference = ((got.double() - expected).norm() / expected.norm()).item()
        us = graph_us(built.calls, case.launches) / case.per
        return Result(*named, us, case.floor_us, difference)
    except Exception as error:  # one candidate that does not fit must not end the run
        return Result(*named, float("inf"), case.floor_us, failure=f"{error!r:.200}")


def measure_section(section: str, only: str, seconds: float, output: Path) -> None:
    began = time.monotonic()
    with output.open("a") as lines:
        for case in cases_of(section, only):
            if time.monotonic() - began > seconds:
                print(f"{section}: stopped after {seconds:.0f} s", flush=True)
                break
            lines.write(json.dumps(asdict(measure(case))) + "\n")
            lines.flush()


def print_table(results: list[Result]) -> None:
    """The best variant of each (kernel, shape), its worst relative error, and the next best."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.kernel, result.shape), []).append(result)
    print_matrix({key: group for key, group in groups.items() if key[0] == "linear"})
    print(f"{'kernel':15} {'shape':25} {'us':>8} {'floor':>8} share error   best variant, others")
    for (kernel, shape), group in groups.items():
        timed = sorted((result for result in group if not result.failure), key=lambda result: result.us)
        if not timed:
            print(f"{kernel:15} {shape:25} FAILED {group[0].failure[:100]}")
            continue
        if kernel == "linear":
            continue
        best = timed[0]
        others = " ".join(f"{result.variant}:{result.us:.1f}" for result in timed[1:4])
        share = f"{100 * best.floor_us / best.us:4.0f}%"
        print(f"{kernel:15} {shape:25} {best.us:8.2f} {best.floor_us:8.2f} {share} {worst_error(timed):5} "
              f"{best.variant}, {others}")  # fmt: skip


def print_matrix(groups: dict[tuple[str, str], list[Result]]) -> None:
    """Linear layers: a line a weight for the library's time and one for the best of ours, a column a batch size."""
    rows: dict[str, dict[str, list[Result]]] = {}
    for (_, shape), group in groups.items():
        weight, _, batch = shape.rpartition(" ")
        rows.setdefault(weight, {})[batch] = group
    for weight, batches in rows.items():
        library, ours = [], []
        for batch, group in batches.items():
            for side, line in ((True, library), (False, ours)):
                timed = [result for result in group if (result.variant == "cublas") == side and not result.failure]
                if timed:
                    best = min(timed, key=lambda result: result.us)
                    name = "" if side else f" {best.variant}"
                    line.append(f"{batch}: {best.us:.1f} {100 * best.floor_us / best.us:.0f}%{name}")
        print(f"{weight:14} cublas {'  '.join(library)}")
        print(
            f"{'':14} triton {'  '.join(ours)}  error {worst_error([r for group in batches.values() for r in group])}"
        )


def worst_error(results: list[Result]) -> str:
    errors = [result.relative_error for result in results if result.relative_error is not None]
    return f"{max(errors):.0e}" if errors else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--only", default="")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--compile", help="internal: compile every N-th case from the I-th, as I/N")
    parser.add_argument("--measure", type=Path, help="internal: append the measurements of one section to this file")
    parser.add_argument("--processes", type=int, default=min(14, os.cpu_count() or 1))
    parser.add_argument("--commit", default="", help="where the checkout has no git")
    parser.add_argument("--seconds", type=float, default=60.0, help="a section starts no measurement after that many")
    arguments = parser.parse_args()
    sections = arguments.sections.split(",")
    torch.manual_seed(0)
    if arguments.compile:
        compile_share([case for section in sections for case in cases_of(section, arguments.only)], arguments.compile)
        return
    if arguments.measure:
        measure_section(sections[0], arguments.only, arguments.seconds, arguments.measure)
        return
    began = time.monotonic()
    count = arguments.processes
    only = ["--only", arguments.only]
    run_children([sections] * count, [["--compile", f"{i}/{count}", *only] for i in range(count)])
    print(f"compiled in {time.monotonic() - began:.0f} s", flush=True)
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    limits = measure_limits(torch.device("cuda"))
    header = {
        "hardware": f"{torch.cuda.get_device_name()}; torch {torch.__version__}, triton {triton.__version__}",
        "commit": arguments.commit or git.stdout.strip(),
        "command": f"python -m benchmarks.gpu.kernels --sections {arguments.sections}",
        "copy_TB_s": round(limits.copy_bytes_per_s / 1e12, 3),
        "bf16_TFLOP_s": round(limits.matmul_flops_per_s / 1e12, 1),
    }
    output = arguments.output or Path(tempfile.mkdtemp()) / "kernels.jsonl"
    output.write_text(json.dumps(header) + "\n")
    for section in sections:
        run_children([[section]], [["--measure", str(output), "--seconds", str(arguments.seconds), *only]])
        print(f"{section}: {time.monotonic() - began:.0f} s", flush=True)
    results = [Result(**json.loads(line)) for line in output.read_text().splitlines()[1:]]
    for line in sorted({f"{r.kernel} {r.shape} {r.variant}: {r.failure}" for r in results if r.failure})[:8]:
        print("failed:", line[:220])
    print(header)
    print_table(results)


if __name__ == "__main__":
    main()
