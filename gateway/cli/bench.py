"""`headrace bench`: the native engine in this very process, without HTTP. Figures as they come, then JSON.

The one command whose process computes: it imports torch, and serves nothing.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from typing import Any

from config.engines import NativeSettings
from config.settings import Loaded, SettingsError
from engines.errors import HeadraceError
from engines.native.bench.figures import (
    About,
    LatencyFigures,
    Limits,
    PrefillFigures,
    Report,
    ThroughputFigures,
)
from gateway.cli.bench_arguments import BenchArguments
from gateway.cli.display import Display
from gateway.cli.wiring import missing_package

Say = Callable[[str], None]


def bench(loaded: Loaded, wanted: BenchArguments) -> int:
    """Returns the process's exit code. Raises SettingsError where the settings do not name one native engine."""
    section = _native_section(loaded)
    display = Display(sys.stderr)
    table = FiguresTable(lambda line: print(line, flush=True))

    def on_ready(about: About, limits: Limits) -> None:
        display.close_progress()
        gc.collect()
        gc.freeze()  # as the serving process does: collections would walk the model again and again
        table.begin(about, limits)

    try:
        report = _measure(section, wanted, display, on_ready, table)
        if wanted.plot is not None:
            from engines.native.bench.plot import plot_load

            plot_load(report, wanted.plot)
            print(f"\nplot: {wanted.plot}")
    except HeadraceError as error:
        display.error(error.message)
        return 1
    except OSError as error:
        display.error(str(error))
        return 1
    print("\n" + json.dumps(_rounded({"version": _version(), **asdict(report)})), flush=True)
    return 0


def _measure(
    section: NativeSettings,
    wanted: BenchArguments,
    display: Display,
    on_ready: Callable[[About, Limits], None],
    table: FiguresTable,
) -> Report:
    try:
        from engines.native.bench.measure import run_bench
    except ImportError as error:
        raise missing_package("native", error) from error
    return run_bench(section, wanted.plan, display.progress, on_ready, table.add)


class FiguresTable:
    """Figures as lines of text, each when it is known, under a heading for each kind."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._heading = ""

    def begin(self, about: About, limits: Limits) -> None:
        self._say(f"{about.model} on {about.device}: {about.dtype}, attention {about.attention_backend}")
        self._say(
            f"measured limits: memory {limits.copy_bytes_per_s / 1e9:.3g} GB/s copied, "
            f"matrices {limits.matmul_flops_per_s / 1e12:.3g} TFLOP/s"
        )

    def add(self, figures: LatencyFigures | ThroughputFigures | PrefillFigures) -> None:
        match figures:
            case LatencyFigures():
                self._latency(figures)
            case ThroughputFigures():
                self._throughput(figures)
            case PrefillFigures():
                self._prefill(figures)

    def _latency(self, f: LatencyFigures) -> None:
        self._head(
            f"latency: a batch of {f.batch_size}, {f.prompt_tokens} tokens in, {f.output_tokens} out; median of "
            f"{f.repeats}",
            f"{'':14}{'ms':>10}{'limit ms':>10}{'memory':>9}{'matrices':>10}",
        )
        for name, ms, limit_ms, shares in (
            ("first token", f.first_token_ms, f.first_token_limit_ms, f.first_token_shares),
            ("between tokens", f.inter_token_ms, f.inter_token_limit_ms, f.inter_token_shares),
        ):
            self._say(f"{name:14}{ms:>10.4g}{limit_ms:>10.4g}{shares.bandwidth:>9.0%}{shares.matrix:>10.0%}")
        self._say(f"{'whole':14}{f.total_ms:>10.4g}")

    def _throughput(self, f: ThroughputFigures) -> None:
        """79 columns, so that it stands in any terminal."""
        self._head(
            f"throughput: {f.prompt_tokens} tokens in, {f.output_tokens} out; times in ms, p50/p99",
            f"{'at once':>7}{'tok/s out':>10}{'limit':>7}{'of limit':>9}{'memory':>7}{'matrices':>9}"
            f"{'first token':>15}{'between':>15}",
        )
        first, between = (f"{_short(s.p50)}/{_short(s.p99)}" for s in (f.first_token_ms, f.inter_token_ms))
        self._say(
            f"{f.concurrency:>7}{f.output_tokens_per_s:>10.1f}{f.limit_tokens_per_s:>7.0f}{f.of_limit:>9.0%}"
            f"{f.shares.bandwidth:>7.0%}{f.shares.matrix:>9.0%}{first:>15}{between:>15}"
            + (f"  ({f.preemptions} preemptions)" if f.preemptions else "")
        )

    def _prefill(self, f: PrefillFigures) -> None:
        self._head(
            f"prefill: one prompt at a time; median of {f.repeats}",
            f"{'tokens':>8}{'first token ms':>16}{'tok/s in':>11}{'limit':>9}{'of limit':>10}{'memory':>8}"
            f"{'matrices':>10}",
        )
        self._say(
            f"{f.prompt_tokens:>8}{f.first_token_ms:>16.4g}{f.tokens_per_s:>11.0f}{f.limit_tokens_per_s:>9.0f}"
            f"{f.of_limit:>10.0%}{f.shares.bandwidth:>8.0%}{f.shares.matrix:>10.0%}"
        )

    def _head(self, heading: str, *columns: str) -> None:
        if heading != self._heading:
            self._heading = heading
            self._say(f"\n{heading}")
            for line in columns:
                self._say(line)


def _short(milliseconds: float) -> str:
    """Three digits, or all that stand before the point."""
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def _native_section(loaded: Loaded) -> NativeSettings:
    native = [section for section in loaded.engines if isinstance(section, NativeSettings)]
    if len(native) != 1 or len(loaded.engines) != 1:
        kinds = ", ".join(section.kind for section in loaded.engines)
        raise SettingsError(f"engines: bench measures one native engine, but the settings describe {kinds}.")
    return native[0]


def _rounded(value: Any) -> Any:
    """Five significant digits: more would be noise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def _version() -> str:
    try:
        return metadata.version("headrace")
    except metadata.PackageNotFoundError:  # run from a checkout
        return ""
