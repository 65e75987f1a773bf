"""GET /openapi.json: the document of every route, with schemas taken from the adapters' own wire models.

A test compares its paths with the application's routes, and answers with its schemas.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from adapters.openapi import openapi_schemas
from gateway.openapi_refusals import COUNTS, GENERATES, NATIVE, STORED, TOKENIZES, refusal_components


@dataclass(frozen=True, slots=True)
class _Operation:
    """`answer`, `body` and `chunk` are names of the adapters' wire types, or JSON schemas."""

    method: str
    path: str
    summary: str
    answer: str | Mapping[str, Any] | None  # None: no body
    body: str | Mapping[str, Any] | None = None
    chunks: Sequence[str] = ()  # what one server-sent event's data may be, where the answer may be streamed
    parameters: Sequence[str] = ()  # beside those of every route and those of the path
    ends_in_done: bool = False  # of a stream
    refusals: Sequence[int] = ()
    media_type: str = "application/json"
    unhealthy: bool = False  # 503 has the answer's own shape
    refusal: str = "Refusal"  # kind of component, see openapi_refusals.py


_HEALTH_SCHEMA = {
    "type": "object",
    "required": ["status", "engines"],
    "properties": {
        "status": {"enum": ["ok", "unhealthy"]},
        "engines": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["models", "ok", "detail"],
                "properties": {
                    "models": {"type": "array", "items": {"type": "string"}},
                    "ok": {"type": "boolean"},
                    "detail": {"type": "string"},
                },
            },
        },
    },
}
_VERSION_SCHEMA = {"type": "object", "required": ["version"], "properties": {"version": {"type": "string"}}}


def _ref(kind: str) -> Mapping[str, Any]:
    return {"$ref": f"#/components/schemas/{kind}"}


def _native(
    path: str,
    summary: str,
    answer: str | Mapping[str, Any] | None,
    *,
    body: str | Mapping[str, Any] = "NativeRequest",
    stream: bool = False,
) -> _Operation:
    return _Operation(
        "post",
        path,
        summary,
        answer,
        body,
        chunks=("NativeStreamEvent", "NativeError") if stream else (),
        refusals=NATIVE,
        refusal="NativeRefusal",
    )


_OPENAI_REQUESTS = ("ChatCompletionRequest", "CompletionRequest")
_ONE_RESPONSE = {"type": "array", "minItems": 1, "maxItems": 1, "items": _ref("NativeResponse")}


def _parameter(name: str, place: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": place, "description": description, "schema": {"type": "string"}}


_PARAMETERS = {
    one["name"]: one
    for one in (
        _parameter(
            "X-Request-Id",
            "header",
            "An id to find the request by in logs and answers. One that is longer than 128 characters, or that cannot "
            "stand in a log line, is replaced.",
        ),
        _parameter("anthropic-version", "header", "Any version: the answer is in the shape of Anthropic's API."),
        _parameter("limit", "query", "How many names a page has, with `anthropic-version`: 1 to 1000, default 20."),
        _parameter("after_id", "query", "The page after this name, with `anthropic-version`."),
        _parameter("before_id", "query", "The page before this name, with `anthropic-version`."),
    )
}

OPERATIONS = (
    _Operation(
        "post",
        "/v1/chat/completions",
        "Answer a conversation, whole or as a stream of server-sent events that ends in `[DONE]`.",
        "ChatCompletion",
        body="ChatCompletionRequest",
        chunks=("ChatCompletionChunk", "ErrorBody"),
        ends_in_done=True,
        refusals=GENERATES,
    ),
    _Operation(
        "post",
        "/v1/completions",
        "Continue one or several prompts, whole or as a stream of server-sent events that ends in `[DONE]`.",
        "Completion",
        body="CompletionRequest",
        chunks=("CompletionChunk", "ErrorBody"),
        ends_in_done=True,
        refusals=GENERATES,
    ),
    _Operation(
        "post",
        "/v1/responses",
        "OpenAI Responses: answer items, whole or as a stream of named server-sent events.",
        "ResponseObject",
        body="ResponsesRequest",
        chunks=("ResponseEvent",),
        refusals=GENERATES,
    ),
    _Operation("get", "/v1/responses/{response_id}", "A stored response.", "ResponseObject", refusals=STORED),
    _Operation(
        "delete", "/v1/responses/{response_id}", "Forget a stored response.", "DeletedResponse", refusals=STORED
    ),
    _Operation(
        "post",
        "/v1/responses/{response_id}/cancel",
        "Refused: responses are not made in the background.",
        None,
        refusals=STORED,
    ),
    _Operation(
        "get",
        "/v1/responses/{response_id}/input_items",
        "What was sent for a stored response.",
        "ItemList",
        refusals=STORED,
    ),
    _Operation(
        "post",
        "/v1/messages",
        "Anthropic Messages: answer a conversation, whole or as a stream of named server-sent events.",
        "MessageObject",
        body="MessagesRequest",
        chunks=("MessageEvent", "MessagesError"),
        refusals=(*GENERATES, 529),
        refusal="MessagesRefusal",
    ),
    _Operation(
        "post",
        "/v1/messages/count_tokens",
        "Anthropic Messages: how many tokens a conversation has.",
        "TokenCount",
        body="CountTokensRequest",
        refusals=COUNTS,
        refusal="MessagesRefusal",
    ),
    _Operation(
        "post",
        "/v1/embeddings",
        "A vector for each of one or several inputs.",
        "EmbeddingList",
        body="EmbeddingsRequest",
        refusals=GENERATES,
    ),
    _Operation(
        "get",
        "/v1/models",
        "List every model name; in pages, as Anthropic does, for a client that sends `anthropic-version`.",
        {"anyOf": [_ref("ModelList"), _ref("ModelPage")]},
        parameters=("anthropic-version", "limit", "after_id", "before_id"),
        refusals=(400, 405),
        refusal="ModelsRefusal",
    ),
    _Operation(
        "get",
        "/v1/models/{model}",
        "One model; names may contain slashes.",
        {"anyOf": [_ref("ModelObject"), _ref("ModelInfo")]},
        parameters=("anthropic-version",),
        refusals=(404, 405),
        refusal="ModelsRefusal",
    ),
    _Operation(
        "post",
        "/tokenize",
        "Token ids of a text or a conversation, in vLLM's shape; in TGI's for a body with `inputs`.",
        {"oneOf": [_ref("TokenizeAnswer"), {"type": "array", "items": _ref("NativeTokenSpan")}]},
        {"anyOf": [_ref("TokenizeRequest"), _ref("NativeRequest")]},
        refusals=TOKENIZES,
        refusal="TokenizeRefusal",
    ),
    _Operation("post", "/detokenize", "Text of token ids.", "DetokenizeAnswer", "DetokenizeRequest", refusals=COUNTS),
    _Operation(
        "post",
        "/v1/watermark/detect",
        "How surely a text, or token ids, carry a watermark.",
        "WatermarkDetection",
        "DetectRequest",
        refusals=COUNTS,
    ),
    _Operation("get", "/health/ready", "Whether and how each engine can answer.", _HEALTH_SCHEMA, unhealthy=True),
    _Operation("get", "/health/live", "200 without a body, whatever the engines do.", None),
    *(
        _Operation("get", path, "200 without a body when every engine can answer.", None, unhealthy=True)
        for path in ("/health", "/ping", "/")
    ),
    _native("/", "TGI: answer a prompt, whole (an array of one) or streamed.", _ONE_RESPONSE, stream=True),
    _native("/generate", "TGI: answer a prompt, whole.", "NativeResponse"),
    _native("/generate_stream", "TGI: answer a prompt, streamed.", None, stream=True),
    _native("/vertex", "TGI: prompts in Vertex AI's envelope.", "Predictions", body="VertexRequest"),
    _Operation(
        "post",
        "/invocations",
        "TGI: a native, chat or completion request, by its keys.",
        {"anyOf": [_ONE_RESPONSE, _ref("ChatCompletion"), _ref("Completion")]},
        {"anyOf": [_ref("NativeRequest"), *(_ref(f"{kind}WithoutModel") for kind in _OPENAI_REQUESTS)]},
        chunks=("NativeStreamEvent", "NativeError", "ChatCompletionChunk", "CompletionChunk", "ErrorBody"),
        ends_in_done=True,
        refusals=NATIVE,
        refusal="NativeRefusal",
    ),
    _native(
        "/chat_tokenize",
        "TGI: tokens of a conversation.",
        "ChatTokenizeAnswer",
        body="ChatCompletionRequestWithoutModel",
    ),
    _Operation("get", "/info", "TGI: the model and the server's limits.", "Info"),
    _Operation("get", "/version", "The server's version.", _VERSION_SCHEMA),
    _Operation("get", "/metrics", "Prometheus metrics.", {"type": "string"}, media_type="text/plain"),
    _Operation("get", "/openapi.json", "This document.", {"type": "object"}),
    _Operation("get", "/api-doc/openapi.json", "TGI: this document.", {"type": "object"}),
    _Operation("get", "/docs", "The routes, for a person to read.", {"type": "string"}, media_type="text/html"),
)


@cache
def openapi_body(version: str) -> bytes:
    """Built when first asked for: pydantic takes a moment over the schemas."""
    return json.dumps(openapi_document(version), separators=(",", ":")).encode()


def openapi_document(version: str) -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _describe(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Headrace",
            "version": version,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": openapi_schemas(),
            "responses": refusal_components(),
            "headers": {
                "X-Request-Id": {
                    "description": "The request's id: the one that the client sent, or a new one.",
                    "schema": {"type": "string"},
                }
            },
            "parameters": _PARAMETERS,
        },
    }


def _schema(kind: str | Mapping[str, Any]) -> Mapping[str, Any]:
    return _ref(kind) if isinstance(kind, str) else kind


def _describe(operation: _Operation) -> dict[str, Any]:
    content = {} if operation.answer is None else {operation.media_type: {"schema": _schema(operation.answer)}}
    if operation.chunks:
        content["text/event-stream"] = {"schema": _event(operation)}
    answer = {
        "description": operation.summary,
        "headers": {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}},
        "content": content,
    }
    responses: dict[str, Any] = {"200": answer}
    if operation.unhealthy:
        content = {"application/json": {"schema": _HEALTH_SCHEMA}}
        responses["503"] = {**answer, "description": "An engine is not able to answer.", "content": content}
    for status in operation.refusals:
        responses[str(status)] = {"$ref": f"#/components/responses/{operation.refusal}{status}"}
    described: dict[str, Any] = {
        "operationId": operation.method + ("".join(word.capitalize() for word in _words(operation.path)) or "Root"),
        "summary": operation.summary,
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in ("X-Request-Id", *operation.parameters)],
        "responses": responses,
    }
    for name in re.findall(r"{(\w+)}", operation.path):
        described["parameters"].append({"name": name, "in": "path", "required": True, "schema": {"type": "string"}})
    if operation.body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _schema(operation.body)}},
        }
    return described


def _event(operation: _Operation) -> dict[str, Any]:
    """One server-sent event, as OpenAPI 3.2 describes them: an object of its fields, whose data is JSON."""
    chunks = [_ref(chunk) for chunk in operation.chunks]
    data: dict[str, Any] = {"contentMediaType": "application/json", "contentSchema": {"anyOf": chunks}}
    if operation.ends_in_done:
        data = {"anyOf": [data, {"const": "[DONE]", "description": "The last event."}]}
    return {
        "type": "object",
        "description": "One of the stream's server-sent events.",
        "required": ["data"],
        "properties": {"event": {"type": "string"}, "data": {"type": "string", **data}},
    }


def _words(path: str) -> list[str]:
    return "".join(character if character.isalnum() else " " for character in path).split()
