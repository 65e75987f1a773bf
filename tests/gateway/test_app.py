from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from engines.api import Health
from engines.errors import EngineUnavailable
from gateway import endpoints
from gateway.app import create_app
from tests.gateway.asgi import Call, app_of, post
from tests.gateway.scripted import ScriptedEngine, forever

# --- engines ----------------------------------------------------------------------------------------------------------


async def test_lifespan_starts_engines_side_by_side_and_stops_them():
    both = asyncio.Barrier(2)
    engines = [ScriptedEngine(name="a"), ScriptedEngine(name="b")]
    for engine in engines:
        engine.start_step = both.wait
    app = app_of(*engines)
    async with app.router.lifespan_context(app):
        assert [engine.state for engine in engines] == ["started", "started"]
    assert [engine.state for engine in engines] == ["closed", "closed"]


async def test_engine_that_cannot_start_stops_the_others_and_its_error_comes_out():
    slow, broken = ScriptedEngine(name="a"), ScriptedEngine(name="b")
    slow.start_step = forever
    broken.start_step = EngineUnavailable("No such model.")
    app = app_of(slow, broken)
    with pytest.raises(EngineUnavailable, match="No such model"):
        async with app.router.lifespan_context(app):
            pytest.fail("the application started")
    assert (slow.state, broken.state) == ("closed", "closed")


async def test_engine_that_cannot_close_does_not_keep_others_from_closing(caplog: pytest.LogCaptureFixture):
    class Stuck(ScriptedEngine):
        async def aclose(self) -> None:
            raise RuntimeError("stuck")

    other = ScriptedEngine(name="b")
    app = app_of(Stuck(name="a"), other)
    with caplog.at_level(logging.ERROR, "headrace.gateway"):
        async with app.router.lifespan_context(app):
            pass
    assert other.state == "closed"
    assert "stuck" in caplog.text


def test_two_engines_of_one_name_are_refused():
    with pytest.raises(ValueError, match="claimed twice"):
        create_app([ScriptedEngine(), ScriptedEngine()])


# --- routes without a model -------------------------------------------------------------------------------------------


async def test_health_is_200_when_every_engine_is_well():
    app = app_of(ScriptedEngine(name="a"), ScriptedEngine(name="b"))
    for path in ("/health", "/ping", "/", "/health/live"):
        call = await Call(app, path=path).run()
        assert (call.status, call.body) == (200, b""), path
    call = await Call(app, path="/health/ready").run()
    assert call.status == 200
    assert call.json() == {
        "status": "ok",
        "engines": [{"models": ["a"], "ok": True, "detail": ""}, {"models": ["b"], "ok": True, "detail": ""}],
    }


@pytest.mark.parametrize(
    "answer", [Health(False, "core died"), EngineUnavailable("core died")], ids=["answered", "raised"]
)
async def test_health_is_503_when_one_engine_is_not(answer: Health | Exception):
    sick = ScriptedEngine(name="b")
    sick.health_answer = answer
    app = app_of(ScriptedEngine(name="a"), sick)
    for path in ("/health", "/health/ready"):
        call = await Call(app, path=path).run()
        assert call.status == 503
        assert call.json()["status"] == "unhealthy"
        assert call.json()["error_type"] == "healthcheck"
        assert call.json()["engines"][1] == {"models": ["b"], "ok": False, "detail": "core died"}
    assert (await Call(app, path="/health/live").run()).status == 200


async def test_engine_that_does_not_answer_is_not_healthy(monkeypatch: pytest.MonkeyPatch):
    class Silent(ScriptedEngine):
        async def health(self) -> Health:
            await forever()
            raise AssertionError

    monkeypatch.setattr(endpoints, "HEALTH_TIMEOUT_S", 0.01)
    call = await Call(app_of(Silent()), path="/health").run()
    assert call.status == 503
    assert "no answer" in call.json()["engines"][0]["detail"]


async def test_version_is_told():
    assert set((await Call(app_of(), path="/version").run()).json()) == {"version"}


async def test_models_are_listed_and_retrieved_by_any_name():
    app = app_of(ScriptedEngine(name="org/model", aliases=("short",)))
    listed = (await Call(app, path="/v1/models").run()).json()
    assert [model["id"] for model in listed["data"]] == ["org/model", "short"]
    for name in ("org/model", "short"):
        call = await Call(app, path=f"/v1/models/{name}").run()
        assert call.status == 200
        assert call.json()["id"] == name
    assert (await Call(app, path="/v1/models/other").run()).status == 404


@pytest.mark.parametrize(
    ("path", "fields"), [("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})], ids=["to", "from"]
)
async def test_engine_without_tokenizer_says_so(path: str, fields: dict[str, Any]):
    call = await post(app_of(), path, fields).run()
    assert call.status == 400
    assert call.json()["error"]["code"] == "unsupported_parameter"


# --- methods and paths ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1", "/v1/chat", "/v1/chat/completions/", "/v2/models", "//", "/v1/models/"])
async def test_unknown_path_is_404_in_json(path: str):
    call = await Call(app_of(), path=path).run()
    assert call.status == 404
    assert call.headers["content-type"] == "application/json"
    assert call.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "OPTIONS, POST"),
        ("DELETE", "/v1/models", "GET, HEAD, OPTIONS"),
        ("POST", "/health", "GET, HEAD, OPTIONS"),
        ("BREW", "/tokenize", "OPTIONS, POST"),
    ],
)
async def test_wrong_method_is_405_with_those_that_are_allowed(method: str, path: str, allowed: str):
    call = await Call(app_of(), method, path).run()
    assert call.status == 405
    assert call.headers["allow"] == allowed
    assert call.json()["error"]["code"] == "method_not_allowed"


async def test_options_lists_the_methods():
    call = await Call(app_of(), "OPTIONS", "/v1/completions").run()
    assert call.status == 204
    assert call.headers["allow"] == "OPTIONS, POST"
    assert call.body == b""


async def test_head_is_answered_as_get():
    call = await Call(app_of(), "HEAD", "/v1/models").run()
    assert call.status == 200
