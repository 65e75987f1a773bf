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

_REFUSALS = {
    400: "The request cannot be honoured; `param` names the field.",
    401: "The server wants its API key.",
    404: "No model, or no route, of that name.",
    405: "The route does not answer this method; `Allow` lists those that it does.",
    413: "The body is larger than this server accepts.",
    415: "The body is not declared as application/json, or is compressed.",
    500: "The generation failed, or a bug; the message names the request's id.",
    502: "A remote engine's upstream failed.",
    503: "The engine is starting, stopping, dead, or its queue is full (then with `Retry-After`).",
    504: "A remote engine's upstream did not answer in time.",
}
_GENERATES = (400, 401, 404, 405, 413, 415, 500, 502, 503, 504)
_STORED = (400, 401, 404, 405)
_COUNTS = (400, 401, 404, 405, 413, 415, 500, 503)

_NATIVE_REFUSALS = {
    400: "The body is not JSON.",
    401: _REFUSALS[401],
    404: "No model of that name.",
    413: _REFUSALS[413],
    415: _REFUSALS[415],
    422: "The request cannot be honoured; the message names the parameter.",
    424: "The generation failed.",
    429: "As many requests are being answered as this server takes.",
    500: "A bug; the message names the request's id.",
    503: "The engine is starting, stopping or dead.",
}

_MESSAGES_REFUSALS = {
    **_REFUSALS,
    400: "The request cannot be honoured; the message names the field.",
    503: "The engine is starting, stopping or dead.",
    529: "The engine's queue is full, or as many requests are being answered as this server takes.",
}


@dataclass(frozen=True, slots=True)
class _Operation:
    """`answer`, `body` and `chunk` are names of the adapters' wire types, or JSON schemas."""

    method: str
    path: str
    summary: str
    answer: str | Mapping[str, Any] | None  # None: no body
    body: str | Mapping[str, Any] | None = None
    chunk: str | None = None  # one server-sent event, where the answer may be streamed
    refusals: Sequence[int] = ()
    media_type: str = "application/json"
    unhealthy: bool = False  # 503 has the answer's own shape
    refusal: str = "Refusal"  # kind of component: in OpenAI's shape, "NativeRefusal" in TGI's, "MessagesRefusal"


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
        chunk="NativeStreamEvent" if stream else None,
        refusals=tuple(_NATIVE_REFUSALS),
        refusal="NativeRefusal",
    )


_ONE_RESPONSE = {"type": "array", "minItems": 1, "maxItems": 1, "items": _ref("NativeResponse")}

OPERATIONS = (
    _Operation(
        "post",
        "/v1/chat/completions",
        "Answer a conversation, whole or as a stream of server-sent events that ends in `[DONE]`.",
        "ChatCompletion",
        body="ChatCompletionRequest",
        chunk="ChatCompletionChunk",
        refusals=_GENERATES,
    ),
    _Operation(
        "post",
        "/v1/completions",
        "Continue one or several prompts, whole or as a stream of server-sent events that ends in `[DONE]`.",
        "Completion",
        body="CompletionRequest",
        chunk="CompletionChunk",
        refusals=_GENERATES,
    ),
    _Operation(
        "post",
        "/v1/responses",
        "OpenAI Responses: answer items, whole or as a stream of named server-sent events.",
        "ResponseObject",
        body="ResponsesRequest",
        chunk="ResponseEvent",
        refusals=_GENERATES,
    ),
    _Operation("get", "/v1/responses/{response_id}", "A stored response.", "ResponseObject", refusals=_STORED),
    _Operation(
        "delete", "/v1/responses/{response_id}", "Forget a stored response.", "DeletedResponse", refusals=_STORED
    ),
    _Operation(
        "post",
        "/v1/responses/{response_id}/cancel",
        "Refused: responses are not made in the background.",
        None,
        refusals=_STORED,
    ),
    _Operation(
        "get",
        "/v1/responses/{response_id}/input_items",
        "What was sent for a stored response.",
        "ItemList",
        refusals=_STORED,
    ),
    _Operation(
        "post",
        "/v1/messages",
        "Anthropic Messages: answer a conversation, whole or as a stream of named server-sent events.",
        "MessageObject",
        body="MessagesRequest",
        chunk="MessageEvent",
        refusals=(*_GENERATES, 529),
        refusal="MessagesRefusal",
    ),
    _Operation(
        "post",
        "/v1/messages/count_tokens",
        "Anthropic Messages: how many tokens a conversation has.",
        "TokenCount",
        body="CountTokensRequest",
        refusals=_COUNTS,
        refusal="MessagesRefusal",
    ),
    _Operation("get", "/v1/models", "List every model name.", "ModelList", refusals=(405,)),
    _Operation(
        "get", "/v1/models/{model}", "One model; names may contain slashes.", "ModelObject", refusals=(404, 405)
    ),
    _Operation(
        "post",
        "/tokenize",
        "Token ids of a text or a conversation, in vLLM's shape; in TGI's for a body with `inputs`.",
        {"oneOf": [_ref("TokenizeAnswer"), {"type": "array", "items": _ref("NativeTokenSpan")}]},
        {"oneOf": [_ref("TokenizeRequest"), _ref("NativeRequest")]},
        refusals=_COUNTS,
    ),
    _Operation("post", "/detokenize", "Text of token ids.", "DetokenizeAnswer", "DetokenizeRequest", refusals=_COUNTS),
    _Operation(
        "post",
        "/v1/watermark/detect",
        "How surely a text, or token ids, carry a watermark.",
        "WatermarkDetection",
        "DetectRequest",
        refusals=_COUNTS,
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
    _native("/invocations", "TGI: a native, chat or completion request, by its keys.", {}, body={"type": "object"}),
    _native("/chat_tokenize", "TGI: tokens of a conversation.", "ChatTokenizeAnswer", body="ChatCompletionRequest"),
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
    refusal = {"application/json": {"schema": _schema("ErrorBody")}}
    native = {"application/json": {"schema": _schema("NativeError")}}
    messages = {"application/json": {"schema": _schema("MessagesError")}}
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
            "responses": {
                f"Refusal{status}": {"description": text, "content": refusal} for status, text in _REFUSALS.items()
            }
            | {
                f"NativeRefusal{status}": {"description": text, "content": native}
                for status, text in _NATIVE_REFUSALS.items()
            }
            | {
                f"MessagesRefusal{status}": {"description": text, "content": messages}
                for status, text in _MESSAGES_REFUSALS.items()
            },
            "headers": {
                "X-Request-Id": {
                    "description": "The request's id: the one that the client sent, or a new one.",
                    "schema": {"type": "string"},
                }
            },
            "parameters": {
                "X-Request-Id": {
                    "name": "X-Request-Id",
                    "in": "header",
                    "description": "An id to find the request by in logs and answers.",
                    "schema": {"type": "string", "maxLength": 128},
                }
            },
        },
    }


def _schema(kind: str | Mapping[str, Any]) -> Mapping[str, Any]:
    return _ref(kind) if isinstance(kind, str) else kind


def _describe(operation: _Operation) -> dict[str, Any]:
    content = {} if operation.answer is None else {operation.media_type: {"schema": _schema(operation.answer)}}
    if operation.chunk is not None:
        content["text/event-stream"] = {"schema": _schema(operation.chunk)}
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
        "parameters": [{"$ref": "#/components/parameters/X-Request-Id"}],
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


def _words(path: str) -> list[str]:
    return "".join(character if character.isalnum() else " " for character in path).split()
