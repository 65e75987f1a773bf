"""The command's words for a server's answers. What a server finds in real text is tested over HTTP."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from engines.api import MarkedToken, TextPrompt, TokensPrompt, WatermarkParams, WatermarkReport
from gateway.app import create_app
from gateway.cli.watermark import DetectOptions, detect
from tests.gateway.live import Live, serving
from tests.gateway.scripted import ScriptedEngine


class KeyedEngine(ScriptedEngine):
    """Finds a mark in every text, for whom says the right key or none."""

    async def detect_watermark(
        self,
        model: str,  # noqa: ARG002
        content: TextPrompt | TokensPrompt,
        watermark: WatermarkParams,
    ) -> WatermarkReport:
        assert isinstance(content, TextPrompt)
        found = watermark.key in (None, "right")
        tokens = tuple(MarkedToken(i, word, None if i == 0 else 1.0) for i, word in enumerate(content.text.split()))
        return WatermarkReport(
            scheme=watermark.scheme or "gumbel",
            num_tokens_scored=len(tokens) - 1,
            statistic=3.0,
            z_score=2.5,
            p_value=1e-6 if found else 0.5,
            tokens=tokens,
        )


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving(create_app([KeyedEngine([])]), "scripted") as server:
        yield server


def shown(live: Live, file: Path, **options: Any) -> tuple[int, str]:
    output = io.StringIO()
    code = detect(DetectOptions(**{"file": str(file), "url": f"{live.url}/v1"} | options), Console(file=output))
    return code, output.getvalue()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_text("one two three")
    return path


def test_the_verdict_comes_with_its_numbers_and_the_text(live: Live, text: Path):
    code, output = shown(live, text)
    assert code == 0
    assert output.startswith("watermarked  scheme gumbel, p-value 1e-06 (verdict at 0.0001), z 2.50, 2 of 3 tokens")
    assert "onetwothree" in output


def test_a_key_from_a_file_and_a_stricter_rate_change_the_verdict(live: Live, text: Path, tmp_path: Path):
    key = tmp_path / "key"
    key.write_text("wrong\n")
    assert shown(live, text, key_file=str(key))[1].startswith("no watermark found")
    key.write_text("right\n")
    assert shown(live, text, key_file=str(key))[1].startswith("watermarked")
    assert shown(live, text, false_positive_rate=1e-9)[1].startswith("no watermark found")


def test_json_is_the_servers_answer(live: Live, text: Path):
    answer = json.loads(shown(live, text, as_json=True, scheme="synthid")[1])
    assert (answer["scheme"], answer["watermarked"], len(answer["tokens"])) == ("synthid", True, 3)


def test_what_goes_wrong_is_one_line(live: Live, text: Path, tmp_path: Path):
    assert shown(live, tmp_path / "missing")[0] == 1
    code, output = shown(live, text, url="http://127.0.0.1:9/v1")
    assert (code, "no server answers" in output) == (1, True)
    text.write_text("")
    code, output = shown(live, text)
    assert (code, "error: text" in output) == (1, True)
