from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from starlette.routing import Route

from config.engines import EchoSettings
from engines.echo import EchoEngine
from gateway.openapi import openapi_document
from tests.gateway.asgi import Call, app_of, post

DOCUMENT = openapi_document("1.2.3")
NATIVE = {"inputs": "a b", "parameters": {"max_new_tokens": 3, "details": True, "best_of": 2, "top_k": 5}}
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "Hi there"}]}


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def resolve(reference: str) -> Any:
    value: Any = DOCUMENT
    for step in reference.removeprefix("#/").split("/"):
        value = value[step]
    return value


def check(schema: dict[str, Any], value: Any) -> None:
    """Whole, the document is the schema's scope, so that references into its components resolve."""
    jsonschema.validate(value, {**schema, "components": DOCUMENT["components"]})


async def echo_app() -> Any:
    engine = EchoEngine(EchoSettings())
    await engine.start()
    return app_of(engine)


def test_every_reference_resolves():
    found = set(references(DOCUMENT))
    assert found
    for reference in found:
        assert resolve(reference)


def test_paths_are_the_routes():
    routes = [route for route in app_of().routes if isinstance(route, Route)]
    served = {
        (method, re.sub(r":\w+}", "}", route.path))
        for route in routes
        for method in (route.methods or set()) - {"HEAD"}
    }
    described = {(method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item}
    assert described == served


def test_component_schemas_are_valid_json_schemas():
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


async def test_document_is_served():
    call = await Call(app_of(), path="/openapi.json").run()
    assert call.json()["openapi"].startswith("3.1")
    assert call.json()["paths"].keys() == DOCUMENT["paths"].keys()


async def test_a_page_lists_every_route_and_loads_nothing_from_afar():
    call = await Call(app_of(), path="/docs").run()
    assert call.headers["content-type"].startswith("text/html")
    page = call.body.decode()
    for path in DOCUMENT["paths"]:
        assert f" {path}</code>" in page
    assert "<script" not in page
    assert "://" not in page


@pytest.mark.parametrize(
    ("method", "path", "fields"),
    [
        ("post", "/v1/chat/completions", CHAT),
        ("post", "/v1/chat/completions", {**CHAT, "n": 2, "max_tokens": 3, "return_token_ids": True}),
        ("post", "/v1/completions", {"model": "echo", "prompt": ["a", "b"], "echo": True}),
        ("post", "/v1/embeddings", {"model": "echo", "input": ["a b", "c"], "dimensions": 8}),
        ("post", "/v1/embeddings", {"model": "echo", "input": [97, 98], "encoding_format": "base64"}),
        ("post", "/v1/responses", {"model": "echo", "input": [{"role": "user", "content": "Hi there"}]}),
        ("post", "/v1/messages", {**CHAT, "max_tokens": 5}),
        ("post", "/v1/messages/count_tokens", CHAT),
        ("get", "/v1/models", None),
        ("get", "/v1/models/echo", None),
        ("post", "/tokenize", {"prompt": "a b", "return_token_strs": True}),
        ("post", "/detokenize", {"tokens": [97]}),
        ("post", "/tokenize", {"inputs": "a b"}),
        ("post", "/chat_tokenize", CHAT),
        ("post", "/", NATIVE),
        ("post", "/generate", NATIVE),
        ("post", "/vertex", {"instances": [NATIVE, {"inputs": "b"}]}),
        ("post", "/invocations", NATIVE),
        ("get", "/info", None),
        ("get", "/health/ready", None),
        ("get", "/version", None),
        ("get", "/openapi.json", None),
        ("get", "/api-doc/openapi.json", None),
    ],
)
async def test_answer_fits_its_schema_and_the_request_its_own(method: str, path: str, fields: Any):
    app = await echo_app()
    call = await (Call(app, path=path) if fields is None else post(app, path, fields)).run()
    assert call.status == 200, call.body
    operation = DOCUMENT["paths"]["/v1/models/{model}" if path == "/v1/models/echo" else path][method]
    check(operation["responses"]["200"]["content"]["application/json"]["schema"], call.json())
    if fields is not None:
        check(operation["requestBody"]["content"]["application/json"]["schema"], fields)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"model": "echo", "prompt": "a b c", "echo": True}),
        ("/", {"inputs": "a b c d", "parameters": {"details": True}}),
        ("/generate_stream", {"inputs": "a b c d", "parameters": {"details": True}}),
    ],
)
async def test_every_chunk_fits_its_schema(path: str, fields: dict[str, Any]):
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}} if "v1" in path else {}
    call = await post(await echo_app(), path, {**fields, "stream": True, **options}).run()
    schema = DOCUMENT["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]["schema"]
    data = schema["properties"]["data"]
    assert ("anyOf" in data) == ("v1" in path)
    assert schema["required"] == ["data"]
    if "anyOf" in data:
        data, done = data["anyOf"]
        assert done["const"] == "[DONE]"
    assert data["contentMediaType"] == "application/json"
    events = call.events()
    assert len(events) > 3
    assert (events[-1] == "[DONE]") == ("v1" in path)
    for event in events:
        if event != "[DONE]":
            check(data["contentSchema"], event)


@pytest.mark.parametrize(
    ("path", "status"),
    [("/v1/completions", 400), ("/generate", 422), ("/v1/messages", 400), ("/nowhere", 404), ("/v1/models/x", 404)],
)
async def test_refusal_fits_its_schema(path: str, status: int):
    app = await echo_app()
    call = await (Call(app, path=path) if status == 404 else post(app, path, {})).run()
    assert call.status == status
    kind = "NativeRefusal" if status == 422 else "MessagesRefusal" if path == "/v1/messages" else "Refusal"
    check(DOCUMENT["components"]["responses"][f"{kind}{status}"]["content"]["application/json"]["schema"], call.json())


def test_document_is_json():
    assert json.loads(json.dumps(DOCUMENT)) == DOCUMENT
