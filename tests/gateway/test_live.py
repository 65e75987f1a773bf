"""What only a real connection shows: disconnects, backpressure, early refusals, keep-alive."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import httpx
import pytest

from config.engines import EchoSettings
from engines.echo import EchoEngine
from gateway.app import GatewayOptions, create_app
from tests.gateway.live import Live, serving, wait_until
from tests.gateway.scripted import DONE, STARTED, ScriptedEngine, Step, forever, last, text

CHAT = "/v1/chat/completions"


def body_of(model: str, **fields: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "one two three"}], **fields}


@pytest.fixture
def slow_echo() -> Iterator[tuple[Live, EchoEngine]]:
    """Takes 20 ms a token, so that an abandoned answer of 5,000 tokens would run for 100 s."""
    engine = EchoEngine(EchoSettings(token_delay_s=0.02))
    with serving(create_app([engine]), "echo") as live:
        yield live, engine


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_closed_connection_stops_the_generation(slow_echo: tuple[Live, EchoEngine], stream: bool):
    live, engine = slow_echo
    payload = json.dumps(body_of("echo", max_tokens=5000, stream=stream)).encode()
    with socket.create_connection(live.address) as connection:
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
        )
        connection.sendall(head.encode() + b"\r\n" + payload)
        wait_until(lambda: engine.stats().running == 1)
        if stream:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    wait_until(lambda: engine.stats().running == 0)
    assert engine.stats().generated_tokens < 5000


def test_connection_closed_before_the_first_event_closes_the_generator():
    engine = ScriptedEngine((forever,))
    with serving(create_app([engine]), "scripted") as live, httpx.Client(base_url=live.url) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post(CHAT, json=body_of("scripted", stream=True), timeout=0.2)
        wait_until(lambda: len(engine.requests) == 1 and engine.num_open == 0)


def test_many_abandoned_streams_leave_nothing_behind(slow_echo: tuple[Live, EchoEngine]):
    live, engine = slow_echo
    payload = json.dumps(body_of("echo", max_tokens=5000, stream=True)).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    connections = [socket.create_connection(live.address) for _ in range(200)]
    for connection in connections:
        connection.sendall(head.encode() + payload)
    wait_until(lambda: engine.stats().running == 200)
    for connection in connections:
        connection.close()
    wait_until(lambda: engine.stats().running == 0)
    answer = httpx.post(f"{live.url}{CHAT}", json=body_of("echo", max_tokens=2))
    assert answer.json()["usage"]["completion_tokens"] == 2
    metrics = httpx.get(f"{live.url}/metrics").text
    assert "headrace_requests_in_progress 1.0" in metrics


def test_pieces_arrive_as_they_are_generated(slow_echo: tuple[Live, EchoEngine]):
    live, engine = slow_echo
    payload = body_of("echo", max_tokens=50, stream=True)
    with httpx.Client(base_url=live.url) as client, client.stream("POST", CHAT, json=payload) as answer:
        lines = answer.iter_lines()
        while "content" not in next(lines):
            pass
        assert engine.stats().running == 1


def test_client_that_does_not_read_holds_the_engine_back():
    num_pieces = 100_000
    script: tuple[Step, ...] = (STARTED, *[text("x" * 200)] * num_pieces, last(""), DONE)
    engine = ScriptedEngine(script)
    with serving(create_app([engine]), "scripted") as live, httpx.Client(base_url=live.url, timeout=60) as client:
        with client.stream("POST", CHAT, json=body_of("scripted", stream=True)) as answer:
            assert answer.status_code == 200
            seen = -1
            while seen != engine.num_yielded:
                seen = engine.num_yielded
                client.get("/version")  # the server goes on, and so would the engine if nothing held it
            assert seen < num_pieces / 2
            num_read = sum(line.startswith("data: ") for line in answer.iter_lines())
        assert num_read == num_pieces + 3  # the role, the finish and [DONE]


def test_oversize_body_is_answered_even_while_it_is_being_sent():
    app = create_app([EchoEngine(EchoSettings())], options=GatewayOptions(max_body_bytes=1000))
    with serving(app, "echo") as live, httpx.Client(base_url=live.url) as client:
        for content in (b" " * 20_000_000, iter([b" " * 100_000] * 20)):
            answer = client.post(CHAT, content=content, headers={"content-type": "application/json"})
            assert answer.status_code == 413
        assert client.post(CHAT, json=body_of("echo")).status_code == 200


def test_one_connection_serves_streams_and_answers_in_turn(live: Live):
    with httpx.Client(base_url=live.url) as client:
        for stream in (True, False, True):
            answer = client.post(CHAT, json=body_of(live.model, max_tokens=8, stream=stream))
            assert answer.status_code == 200
            assert answer.text.endswith("data: [DONE]\n\n" if stream else "}")
