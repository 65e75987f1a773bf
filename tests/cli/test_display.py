from __future__ import annotations

import io

from gateway.cli.display import Display, EngineFacts


def shown(*engines: EngineFacts, num_workers: int = 1) -> str:
    stream = io.StringIO()
    Display(stream).ready(engines, "http://127.0.0.1:8080", ["/v1/models"], num_workers)
    return stream.getvalue()


def test_ready_shows_each_fact_and_where_to_ask():
    text = shown(EngineFacts(("a", "b"), {"engine": "native", "KV capacity": "65,536 tokens"}))
    rows = {line.split("  ")[0]: line.split("  ")[-1].strip() or line.split() for line in text.splitlines()}
    assert "a, b" in text
    assert rows["KV capacity"] == "65,536 tokens"
    assert "/v1/models" in text
    assert text.endswith("Ready at http://127.0.0.1:8080/v1. Ctrl-C stops.\n")


def test_engines_stand_side_by_side():
    one, other = EngineFacts(("a",), {"engine": "native", "device": "cpu"}), EngineFacts(("b",), {"engine": "remote"})
    lines = shown(one, other, num_workers=2).splitlines()
    assert lines[0].split() == ["model", "a", "b"]
    assert lines[1].split() == ["engine", "native", "remote"]
    assert lines[2].split() == ["device", "cpu"]
    assert "(2 processes)" in lines[-1]


def test_names_with_brackets_are_shown_as_they_are():
    assert "my[bold]model" in shown(EngineFacts(("my[bold]model",), {}))


def test_progress_without_a_terminal_is_one_line_per_finished_stage():
    stream = io.StringIO()
    display = Display(stream)
    for done in (0, 50_000_000, 97_000_000, 97_000_000):
        display.progress("weights", done, 97_000_000)
    display.close_progress()
    assert stream.getvalue() == "weights: 97 MB\n"


def test_each_line_of_an_error_is_marked():
    stream = io.StringIO()
    Display(stream).error("one [x]\ntwo")
    assert stream.getvalue() == "headrace: error: one [x]\nheadrace: error: two\n"
