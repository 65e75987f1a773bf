"""A picture of latency and throughput against load, as PNG. Needs matplotlib, the extra `bench`; knows no engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engines.native.bench.figures import About, Limits, Report, Spread, ThroughputFigures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS, _TAIL, _LIMIT = "#1f5a99", "#d1762a", "#777777"


def plot_load(report: Report, path: Path) -> None:
    """Time to first token, inter-token latency and throughput over the levels of concurrency, to `path`.

    Raises OSError where the file cannot be written.
    """
    from matplotlib.figure import Figure

    levels = sorted(report.throughput, key=lambda level: level.concurrency)
    figure = Figure(figsize=(13.5, 4.8), layout="constrained")
    first, between, rate = figure.subplots(1, 3)
    _spreads(first, levels, [level.first_token_ms for level in levels], "Time to first token, ms")
    _spreads(between, levels, [level.inter_token_ms for level in levels], "Between tokens, ms")
    _throughput(rate, levels)
    shape = f"{levels[0].prompt_tokens} tokens in, {levels[0].output_tokens} out" if levels else ""
    figure.suptitle(f"{report.about.model}: {shape}", fontsize=14)
    figure.supxlabel(_caption(report.about, report.limits), fontsize=8, color=_LIMIT)
    figure.savefig(path, dpi=120, format="png")


def _spreads(axes: Axes, levels: list[ThroughputFigures], spreads: list[Spread], title: str) -> None:
    at = [level.concurrency for level in levels]
    axes.plot(at, [spread.p99 for spread in spreads], "o--", color=_TAIL, label="p99")
    axes.plot(at, [spread.p50 for spread in spreads], "o-", color=_OURS, label="p50")
    axes.set_yscale("log")
    _number_axis(axes, [value for spread in spreads for value in (spread.p50, spread.p99)])
    _load_axis(axes, at, title)


def _throughput(axes: Axes, levels: list[ThroughputFigures]) -> None:
    at = [level.concurrency for level in levels]
    axes.plot(at, [level.limit_tokens_per_s for level in levels], "--", color=_LIMIT, label="serial limit")
    axes.plot(at, [level.output_tokens_per_s for level in levels], "o-", color=_OURS, label="measured")
    for level in levels:
        axes.annotate(
            f"{level.of_limit:.0%}",
            (level.concurrency, level.output_tokens_per_s),
            textcoords="offset points",
            xytext=(0, -14),
            ha="center",
            fontsize=8,
            color=_OURS,
        )
    axes.set_ylim(bottom=0)
    axes.margins(x=0.08)
    _load_axis(axes, at, "Output tokens per second")


def _load_axis(axes: Axes, at: list[int], title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(at, [str(level) for level in at])
    axes.minorticks_off()
    axes.set_xlabel("requests at once")
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


def _number_axis(axes: Axes, values: list[float]) -> None:
    """Ticks at 1, 2 and 5 of each decade within the data, written out: a logarithmic axis may show one label only."""
    low, high = min(values) / 1.3, max(values) * 1.3
    ticks = [digit * 10.0**power for power in range(-3, 7) for digit in (1, 2, 5)]
    shown = [tick for tick in ticks if low <= tick <= high]
    axes.set_ylim(low, high)
    axes.set_yticks(shown, [f"{tick:g}" for tick in shown])


def _caption(about: About, limits: Limits) -> str:
    return (
        f"{about.device}, {about.dtype}, attention {about.attention_backend}; measured limits: "
        f"{limits.copy_bytes_per_s / 1e9:.3g} GB/s copied, {limits.matmul_flops_per_s / 1e12:.3g} TFLOP/s"
    )
