"""TGI's native API over HTTP: statuses, headers, and what is refused where."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from config.engines import EchoSettings
from engines.api import Started
from engines.echo import EchoEngine
from engines.errors import GenerationFailed, Overloaded
from gateway.app import GatewayOptions, create_app
from tests.gateway.asgi import Call, app_of, post
from tests.gateway.scripted import HELLO, STARTED, ScriptedEngine, forever, text, turn

ASK = {"inputs": "Héllo there", "parameters": {"max_new_tokens": 3, "details": True}}
BROKEN = {"inputs": "Hi", "parameters": {"top_p": 1.0}}


async def echo_app(**options: Any) -> Any:
    engine = EchoEngine(EchoSettings())
    await engine.start()
    return app_of(engine, **options)


async def test_whole_answer_carries_its_times_and_counts():
    call = await post(await echo_app(), "/generate", ASK).run()
    assert call.status == 200
    headers = call.headers
    assert headers["x-compute-type"] == "headrace"
    assert headers["x-compute-characters"] == "11"
    assert headers["x-generated-tokens"] == "3"
    assert headers["x-prompt-tokens"] == str(len(["H", "é", "llo", "the", "re"]))
    assert float(headers["x-compute-time"]) > 0
    for name in ("x-total-time", "x-validation-time", "x-queue-time", "x-inference-time", "x-time-per-token"):
        assert headers[name].isdecimal(), name


async def test_queue_time_is_what_the_engine_says():
    engine = ScriptedEngine((Started(prompt_tokens=3, queued_s=0.25), *HELLO[1:]))
    call = await post(app_of(engine), "/generate", {"inputs": "Hi", "parameters": {}}).run()
    assert call.headers["x-queue-time"] == "250"


async def test_stream_carries_what_is_known_before_it_and_no_done():
    call = await post(await echo_app(), "/generate_stream", ASK).run()
    assert call.headers["content-type"].startswith("text/event-stream")
    assert call.headers["x-accel-buffering"] == "no"
    assert call.headers["x-compute-characters"] == "11"
    assert [event["index"] for event in call.events()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("path", "fields", "is_event"),
    [
        ("/generate_stream", BROKEN, True),
        ("/", {**BROKEN, "stream": True}, True),
        ("/invocations", {**BROKEN, "stream": True}, True),
        ("/", BROKEN, False),
        ("/generate", {**BROKEN, "stream": True}, False),
        ("/vertex", {"instances": [BROKEN]}, False),
    ],
)
async def test_invalid_request_is_an_event_in_a_stream_and_422_otherwise(path: str, fields: Any, is_event: bool):
    call = await post(await echo_app(), path, fields).run()
    assert call.status == (200 if is_event else 422)
    (error,) = call.events() if is_event else [call.json()]
    assert error["error_type"] == "validation"
    assert "`top_p`" in error["error"]


async def test_engines_refusal_before_the_first_token_is_an_event_too():
    app = app_of(ScriptedEngine((Overloaded("full"),)))
    call = await post(app, "/generate_stream", ASK).run()
    assert call.status == 200
    assert call.events() == [{"error": "Model is overloaded: full", "error_type": "overloaded"}]
    whole = await post(app, "/generate", ASK).run()
    assert (whole.status, whole.json()["error_type"], whole.headers["retry-after"]) == (429, "overloaded", "1")


async def test_generation_lost_half_way_is_an_event_after_what_came_before():
    call = await post(
        app_of(ScriptedEngine((STARTED, text("a"), GenerationFailed("lost")))), "/generate_stream", ASK
    ).run()
    first, error = call.events()
    assert first["token"]["text"] == "a"
    assert error["error_type"] == "generation"


async def test_fields_that_nobody_knows_are_named_in_a_header():
    fields = {**ASK, "options": {}, "parameters": {**ASK["parameters"], "num_beams": 4, "bad\r\nname": 1}}
    call = await post(await echo_app(), "/generate", fields).run()
    assert call.headers["x-ignored-fields"] == "options, parameters.num_beams"


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {"content-type": "application/json"}, 400),
        (b"[]", {"content-type": "application/json"}, 422),
        (b"{}", {}, 415),
        (b'{"inputs": "%s"}' % (b"x" * 2000), {"content-type": "application/json"}, 413),
    ],
)
async def test_what_tgi_refused_in_plain_text_is_refused_in_json(body: bytes, headers: dict[str, str], status: int):
    app = await echo_app(max_body_bytes=1024)
    call = await Call(app, "POST", "/generate", body, headers).run()
    assert call.status == status
    assert set(call.json()) == {"error", "error_type"}


async def test_tokenize_answers_each_shape_in_its_own():
    app = await echo_app()
    native = await post(app, "/tokenize", {"inputs": "Hé x"}).run()
    assert [(token["text"], token["start"], token["stop"]) for token in native.json()] == [
        ("H", 0, 1),
        ("é", 1, 3),
        (" x", 3, 5),
    ]
    assert (await post(app, "/tokenize", {"prompt": "Hé x"}).run()).json()["count"] == 3
    refused = await post(app, "/tokenize", {"inputs": ""}).run()
    assert (refused.status, refused.json()["error_type"]) == (422, "validation")


async def test_chat_tokenize_tells_the_text_that_its_tokens_cover():
    fields = {"messages": [{"role": "user", "content": "Hi ü"}]}
    answer = (await post(await echo_app(), "/chat_tokenize", fields).run()).json()
    whole = answer["templated_text"].encode()
    assert "Hi ü" in answer["templated_text"]
    for token in answer["tokenize_response"]:
        assert whole[token["start"] : token["stop"]].decode() == token["text"]


async def test_vertex_answers_each_instance_by_its_text():
    instances = [{"inputs": "abc", "parameters": {}}, {"messages": [{"role": "user", "content": "Hi"}]}]
    call = await post(await echo_app(), "/vertex", {"instances": instances}).run()
    assert call.json() == {"predictions": ["abc", "Hi"]}
    refused = await post(await echo_app(), "/vertex", {"instances": [instances[0], {"inputs": ""}]}).run()
    assert refused.status == 422
    assert "instances[1]" in refused.json()["error"]


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"inputs": "a"}, "generated_text"),
        ({"messages": [{"role": "user", "content": "a"}]}, "choices"),
        ({"prompt": "a"}, "choices"),
    ],
)
async def test_invocations_are_told_apart_by_their_keys(fields: Any, key: str):
    answer = (await post(await echo_app(), "/invocations", fields).run()).json()
    assert key in (answer[0] if isinstance(answer, list) else answer)


async def test_openai_routes_carry_tgis_headers_under_its_dialect_alone():
    chat = {"messages": [{"role": "user", "content": "Hi there"}], "max_tokens": 3, "frobnicate": 1}
    app = await echo_app(any_model=True, tgi_dialect=True, compute_type="cpu")
    told = (await post(app, "/v1/chat/completions", chat).run()).headers
    assert (told["x-compute-type"], told["x-compute-characters"], told["x-ignored-fields"]) == (
        "cpu",
        "8",
        "frobnicate",
    )
    assert (told["x-generated-tokens"], "x-total-time" in told) == ("3", True)
    stream = (await post(app, "/v1/completions", {"prompt": "abc", "stream": True}).run()).headers
    assert (stream["x-compute-characters"], "x-total-time" in stream) == ("3", False)
    del chat["frobnicate"]
    plain = (await post(await echo_app(any_model=True), "/v1/chat/completions", chat).run()).headers
    assert not any(name.startswith("x-compute") for name in plain)


async def test_info_tells_the_model_and_the_limits():
    info = (await Call(await echo_app(max_concurrent_requests=7), path="/info").run()).json()
    assert (info["model_id"], info["max_total_tokens"], info["max_concurrent_requests"]) == ("echo", 8192, 7)


async def test_request_over_the_limit_is_refused_at_once_and_the_permit_comes_back():
    engine = ScriptedEngine((STARTED, text("a"), forever), HELLO)
    app = app_of(engine, max_concurrent_requests=1)
    first = post(app, "/generate_stream", ASK)
    task = first.start()
    await turn()
    second = await post(app, "/generate", ASK).run()
    assert (second.status, second.json()["error_type"]) == (429, "overloaded")
    chat = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}
    assert (await post(app, "/v1/chat/completions", chat).run()).status == 503
    first.leave()
    await task
    assert (await post(app, "/generate", ASK).run()).status == 200


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/tokenize", "/chat_tokenize", "/vertex", "/"])
async def test_every_post_wants_the_key(path: str):
    app = await echo_app(api_key="secret")
    for headers in ({}, {"authorization": "Bearer SECRET"}, {"authorization": "secret"}):
        call = await post(app, path, {}, headers).run()
        assert (call.status, call.headers["www-authenticate"]) == (401, "Bearer"), headers
        assert "error" in call.json()
    assert (await post(app, path, {}, {"authorization": "Bearer secret"}).run()).status != 401


async def test_probes_and_metrics_need_no_key():
    app = await echo_app(api_key="secret")
    for path in ("/health", "/ping", "/info", "/metrics", "/v1/models"):
        assert (await Call(app, path=path).run()).status == 200


@pytest.mark.parametrize("model", [{}, {"model": "tgi"}, {"model": "dummy"}], ids=str)
async def test_any_model_is_the_one_there_is_where_the_server_says_so(model: dict[str, str]):
    chat = {**model, "messages": [{"role": "user", "content": "Hi"}]}
    lenient = await post(await echo_app(any_model=True), "/v1/chat/completions", chat).run()
    assert lenient.status == 200
    assert lenient.json()["choices"][0]["message"]["content"] == "Hi"
    assert (await post(await echo_app(), "/v1/chat/completions", chat).run()).status in (400, 404)


@pytest.mark.parametrize(("origins", "allowed"), [(("*",), True), (("https://a.example",), True), ((), False)])
def test_browser_pages_may_call_from_the_origins_that_are_named(origins: tuple[str, ...], allowed: bool):
    app = create_app([EchoEngine(EchoSettings())], options=GatewayOptions(cors_allow_origin=origins))
    with TestClient(app) as client:
        asked = {
            "origin": "https://a.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type,authorization",
        }
        assert ("access-control-allow-origin" in client.options("/generate", headers=asked).headers) is allowed
        answer = client.post("/generate", json=ASK, headers={"origin": "https://a.example"})
        assert answer.status_code == 200
        assert ("access-control-allow-origin" in answer.headers) is allowed
