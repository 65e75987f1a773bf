from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest
from rich.console import Console

from config.engines import EchoSettings
from engines.echo import EchoEngine
from gateway.app import create_app
from gateway.cli.chat import ChatError, ChatOptions, Conversation, chat
from tests.gateway.live import Live, serving


@pytest.fixture(scope="module")
def echo() -> Iterator[Live]:
    with serving(create_app([EchoEngine(EchoSettings())]), "echo") as live:
        yield live


def conversation(live: Live, **options: object) -> Conversation:
    chosen = ChatOptions(url=f"{live.url}/v1", **options)  # pyright: ignore[reportArgumentType]
    made = Conversation(httpx.Client(base_url=f"{live.url}/v1/"), live.model, chosen)
    made.reset()
    return made


def talk(monkeypatch: pytest.MonkeyPatch, url: str, *lines: str, **options: object) -> tuple[int, str]:
    """Type `lines`, then end the input."""
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    shown = io.StringIO()
    code = chat(ChatOptions(url=url, **options), Console(file=shown, width=200))  # pyright: ignore[reportArgumentType]
    return code, shown.getvalue()


def test_answer_comes_in_pieces_and_is_remembered(echo: Live):
    said = conversation(echo, system="be brief", temperature=0.5)
    with said.client:
        assert len(list(said.ask("one two three"))) > 1
        assert "".join(said.ask("four")) == "four"
    assert said.messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one two three"},
        {"role": "assistant", "content": "one two three"},
        {"role": "user", "content": "four"},
        {"role": "assistant", "content": "four"},
    ]


def test_stopped_answer_counts_as_far_as_it_came(echo: Live):
    said = conversation(echo)
    with said.client, closing(said.ask("one two three")) as answer:
        first = next(answer)
    assert said.messages[-1] == {"role": "assistant", "content": first}


def test_refused_question_is_forgotten(echo: Live):
    said = conversation(echo)
    said.model = "none"
    with said.client, pytest.raises(ChatError, match="'none' does not exist"):
        list(said.ask("hello"))
    assert said.messages == []


def test_error_inside_a_stream_is_told():
    def handler(_: httpx.Request) -> httpx.Response:
        events = [{"choices": [{"delta": {"content": "par"}}]}, {"error": {"message": "lost it"}}]
        return httpx.Response(200, text="".join(f"data: {json.dumps(event)}\n\n" for event in events))

    client = httpx.Client(base_url="http://upstream.test/", transport=httpx.MockTransport(handler))
    said = Conversation(client, "m", ChatOptions(url="http://upstream.test"))
    with pytest.raises(ChatError, match="lost it"):
        list(said.ask("hello"))


def test_a_session_at_the_terminal(echo: Live, monkeypatch: pytest.MonkeyPatch):
    code, shown = talk(monkeypatch, f"{echo.url}/v1", "hello there", "", "/help", "/new", "/quit", "never read")
    assert code == 0
    assert "Talking to echo." in shown
    assert "hello there" in shown
    assert "never read" not in shown


def test_end_of_input_ends_the_session(echo: Live, monkeypatch: pytest.MonkeyPatch):
    assert talk(monkeypatch, f"{echo.url}/v1", "hello")[0] == 0


def test_error_of_one_turn_does_not_end_the_session(echo: Live, monkeypatch: pytest.MonkeyPatch):
    code, shown = talk(monkeypatch, f"{echo.url}/v1", "a", "b", model="none")
    assert code == 0
    assert shown.count("'none' does not exist") == 2


def test_no_server_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch):
    code, shown = talk(monkeypatch, "http://127.0.0.1:9/v1")
    assert code == 1
    assert "no server answers at http://127.0.0.1:9/v1; start one with: headrace serve" in shown
