"""The figures of docs/watermark.md, as benchmarks/watermark.py measured them, keep what they promise."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.native.watermark.tails import binomial_tail

ROOT = Path(__file__).parents[4]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*-cpu-watermark.jsonl"))[-1]
DOCS = (ROOT / "docs" / "watermark.md").read_text()
SCHEMES = {"green list", "green list, self-hash", "Gumbel-max", "SynthID-Text"}
CHI_SQUARE_63_AT_1_PERCENT = 92.0


def figures(part: str) -> Iterator[dict[str, Any]]:
    for line in RESULTS.read_text().splitlines():
        figure = json.loads(line)
        if figure["part"] == part:
            yield figure


@pytest.mark.parametrize("part", ["model", "synthetic"])
def test_of_texts_of_200_tokens_99_percent_are_found_at_one_false_alarm_in_10000(part: str) -> None:
    found = list(figures(part))
    assert {figure["scheme"] for figure in found} == SCHEMES
    for figure in found:
        assert (figure["tokens"], figure["false_positive_rate"]) == (200, 1e-4)
        assert figure["true_positive_rate"] >= 0.99, figure


def test_of_10000_unmarked_texts_as_many_are_accused_as_the_binomial_allows() -> None:
    found = list(figures("unmarked"))
    assert {figure["scheme"] for figure in found} == SCHEMES
    assert {figure["nominal"] for figure in found} == {0.05, 0.01, 0.001, 0.0001}
    for figure in found:
        texts, accused = figure["texts"], round(figure["texts"] * figure["measured"])
        assert texts >= 10_000
        assert figure["attainable"] <= figure["nominal"] * (1 + 1e-9)
        assert binomial_tail(accused, texts, figure["attainable"]) > 0.005, figure  # not too many
        assert binomial_tail(accused + 1, texts, figure["attainable"]) < 0.995, figure  # nor too few


def test_unbiased_schemes_leave_the_distribution_and_a_green_list_does_not() -> None:
    measured = {figure["scheme"]: figure["chi_square"] for figure in figures("distribution")}
    assert {figure["degrees_of_freedom"] for figure in figures("distribution")} == {63}
    assert max(measured["Gumbel-max"], measured["SynthID-Text"]) < CHI_SQUARE_63_AT_1_PERCENT
    assert min(measured["green list"], measured["green list, self-hash"]) > CHI_SQUARE_63_AT_1_PERCENT


def test_the_page_shows_the_figures() -> None:
    shown = {float(number) for number in re.findall(r"\d+(?:\.\d+)?", DOCS)}
    for figure in figures("unmarked"):
        assert figure["measured"] in shown, figure
    for scheme, name in (("Gumbel-max", "Gumbel-max"), ("SynthID-Text", "SynthID-Text")):
        (figure,) = (figure for figure in figures("distribution") if figure["scheme"] == scheme)
        assert f"{name} {figure['chi_square']:.1f}" in DOCS
