from __future__ import annotations

import pytest

from tests.gateway.asgi import JSON_HEADERS, Call, app_of
from tests.gateway.scripted import ScriptedEngine

BODY = b'{"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}'
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=utf-8", "Application/JSON ;x=y", "application/vnd.api+json"],
)
async def test_json_is_admitted(content_type: str):
    call = await Call(app_of(), "POST", CHAT, BODY, {"content-type": content_type}).run()
    assert call.status == 200


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="none"),
        pytest.param({"content-type": ""}, id="empty"),
        pytest.param({"content-type": "text/plain"}, id="text"),
        pytest.param({"content-type": "application/x-www-form-urlencoded"}, id="form"),
        pytest.param({"content-type": "application/jsonp"}, id="almost"),
        pytest.param({**JSON_HEADERS, "content-encoding": "gzip"}, id="compressed"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/tokenize", "/detokenize"])
async def test_anything_else_is_refused_before_the_body_is_read(path: str, headers: dict[str, str]):
    call = await Call(app_of(), "POST", path, BODY, headers).run()
    assert call.status == 415
    assert call.json()["error"]["code"] == "unsupported_media_type"
    assert call.num_received == 0


@pytest.mark.parametrize("length", [101, 10**12, 10**5000], ids=["101", "1e12", "1e5000"])
async def test_body_that_declares_too_many_bytes_is_refused_before_it_is_read(length: int):
    digits = "1" + "0" * 5000 if length > 10**100 else str(length)
    call = await Call(app_of(max_body_bytes=100), "POST", CHAT, BODY, {**JSON_HEADERS, "content-length": digits}).run()
    assert call.status == 413
    assert "100 bytes" in call.json()["error"]["message"]
    assert call.num_received == 0


async def test_undeclared_body_is_refused_when_it_grows_too_large():
    call = await Call(app_of(max_body_bytes=100), "POST", CHAT, [b" " * 60] * 50, JSON_HEADERS).run()
    assert call.status == 413
    assert call.num_received == 2


async def test_body_of_exactly_the_limit_is_admitted():
    headers = {**JSON_HEADERS, "content-length": str(len(BODY))}
    call = await Call(app_of(max_body_bytes=len(BODY)), "POST", CHAT, [BODY[:10], BODY[10:]], headers).run()
    assert call.status == 200


async def test_client_that_leaves_while_sending_its_body_reaches_no_engine():
    engine = ScriptedEngine()
    call = Call(app_of(engine), "POST", CHAT, [], JSON_HEADERS)
    call.leave()
    await call.run()
    assert call.sent == []
    assert engine.requests == []
