from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from tests.gateway.asgi import Call, app_of, chat
from tests.gateway.scripted import HELLO, STARTED, ScriptedEngine, forever, turn


def access_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(entry.getMessage()) for entry in caplog.records if entry.name == "headrace.access"]


@pytest.fixture
def access_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "headrace.access")
    return caplog


@pytest.mark.parametrize("sent", ["abc", "a" * 128, "3f2c-00/7:x.y+z=@_"])
async def test_request_id_of_the_client_is_sent_back(sent: str):
    call = await Call(app_of(), path="/version", headers={"x-request-id": sent}).run()
    assert call.headers["x-request-id"] == sent


@pytest.mark.parametrize("sent", ["", "a" * 129, "a b", "a\tb", "é"])
async def test_odd_request_id_is_replaced(sent: str):
    call = await Call(app_of(), path="/version", headers={"x-request-id": sent}).run()
    assert call.headers["x-request-id"] not in (sent, "")


async def test_requests_without_id_get_ids_of_their_own():
    ids = {(await Call(app_of(), path="/version").run()).headers["x-request-id"] for _ in range(20)}
    assert len(ids) == 20


async def test_engine_sees_different_ids_for_requests_of_one_client_id():
    engine = ScriptedEngine()
    app = app_of(engine)
    for _ in range(2):
        await chat(app, headers={"x-request-id": "mine"}).run()
    first, second = (request.request_id for request in engine.requests)
    assert first != second
    assert "mine" in first
    assert "mine" in second


@pytest.mark.parametrize("path", ["/nowhere", "/v1/models/missing", "/version"])
async def test_every_answer_carries_the_id(path: str):
    call = await Call(app_of(), path=path, headers={"x-request-id": "mine"}).run()
    assert call.headers["x-request-id"] == "mine"


async def test_streams_headers_do_not_pile_up():
    app = app_of()
    for _ in range(3):
        call = await chat(app).run()
    assert [name for name, _ in call.sent[0]["headers"]].count(b"x-request-id") == 1  # type: ignore[possibly-undefined]


async def test_access_line_tells_what_was_asked_and_answered(access_log: pytest.LogCaptureFixture):
    await chat(app_of(ScriptedEngine(HELLO)), headers={"x-request-id": "mine"}).run()
    (line,) = access_lines(access_log)
    assert line.pop("duration_ms") >= line.pop("first_token_ms") >= 0
    assert line == {
        "request_id": "mine",
        "client": "127.0.0.1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "model": "scripted",
        "prompt_tokens": 3,
        "completion_tokens": 2,
    }


async def test_access_line_tells_the_error_inside_a_stream(access_log: pytest.LogCaptureFixture):
    await chat(app_of(ScriptedEngine((STARTED, turn, RuntimeError("secret")))), headers={"x-request-id": "mine"}).run()
    (line,) = access_lines(access_log)
    assert line["status"] == 200
    assert "mine" in line["error"]


async def test_access_line_of_an_odd_path_stays_one_line(access_log: pytest.LogCaptureFixture):
    await Call(app_of(), path='/a\n"b"').run()
    (entry,) = access_log.records
    assert "\n" not in entry.getMessage()
    assert access_lines(access_log)[0]["path"] == '/a\n"b"'


async def test_client_that_left_is_recorded_as_499(access_log: pytest.LogCaptureFixture):
    call = chat(app_of(ScriptedEngine((forever,))))
    task = call.start()
    await turn()
    call.leave()
    await task
    (line,) = access_lines(access_log)
    assert (line["status"], line["error"]) == (499, "The client left.")
    assert call.sent == []


async def test_probes_are_not_logged_by_default(access_log: pytest.LogCaptureFixture):
    for path in ("/health", "/metrics"):
        await Call(app_of(), path=path).run()
    assert access_lines(access_log) == []


async def test_bug_in_a_route_is_answered_with_the_request_id_and_logged(caplog: pytest.LogCaptureFixture):
    engine = ScriptedEngine()
    engine.health_answer = RuntimeError("secret")
    call = await Call(app_of(engine), path="/health", headers={"x-request-id": "mine"}).run()
    assert call.status == 500
    assert call.headers["x-request-id"] == "mine"
    assert call.json()["error"]["message"] == "Internal server error (request mine)."
    assert call.json()["error"]["type"] == "server_error"
    assert "secret" in caplog.text
