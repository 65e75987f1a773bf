"""Streams and answers byte by byte, as recorded: what a client's hand-written parser may have come to rely on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.adapters.driving import chat, collect, complete, story

FOLDER = Path(__file__).parent / "fixtures" / "answers"
ROUTES = {"/v1/chat/completions": chat, "/v1/completions": complete}


def undated(data: bytes) -> str:
    return re.sub(r'"created":\d+', '"created":0', data.decode("utf-8"))


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.json")))
def test_an_answer_is_byte_for_byte_the_recorded_one(name: str) -> None:
    recorded: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    exchange = ROUTES[recorded["path"]](**recorded["fields"])
    if exchange.stream:
        said = "".join(undated(exchange.frame(0, event)) for event in story()) + undated(exchange.end())
        assert said.splitlines(keepends=True) == recorded["stream"]
    else:
        assert undated(exchange.response(collect(exchange, story()))) == recorded["answer"]
