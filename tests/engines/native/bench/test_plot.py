"""The picture of latency against load."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.native.bench.figures import About, Limits, Report, Shares, Spread, ThroughputFigures

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from engines.native.bench.plot import plot_load


def level(concurrency: int, first_ms: float) -> ThroughputFigures:
    return ThroughputFigures(
        concurrency=concurrency,
        prompt_tokens=16,
        output_tokens=8,
        requests=4,
        output_tokens_per_s=100.0 * concurrency,
        limit_tokens_per_s=150.0 * concurrency,
        of_limit=2 / 3,
        shares=Shares(0.5, 0.1),
        first_token_ms=Spread(first_ms, 3 * first_ms),
        inter_token_ms=Spread(5.0, 9.0),
        duration_s=1.0,
        steps=10,
        preemptions=0,
    )


@pytest.mark.parametrize("levels", [(1,), (8, 1, 32)], ids=["one level", "out of order"])
def test_a_report_becomes_a_png(levels: tuple[int, ...], tmp_path: Path):
    about = About("m", "CPU, 2 threads", "float32", "numba", 4, 100, 1.0)
    report = Report(about, Limits(3e10, 4e11), throughput=tuple(level(n, 0.02 * n) for n in levels))
    path = tmp_path / "load.png"
    plot_load(report, path)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert int.from_bytes(data[16:20]) > 1000, "pixels across"
