"""GET /openapi.json: the document of every route, with schemas taken from the adapters' own wire models.

A test compares its paths with the application's routes, and answers with its schemas.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from adapters.openapi import openapi_schemas

_REFUSALS = {
    400: "The request cannot be honoured; `param` names the field.",
    404: "No model, or no route, of that name.",
    405: "The route does not answer this method; `Allow` lists those that it does.",
    413: "The body is larger than this server accepts.",
    415: "The body is not declared as application/json, or is compressed.",
    500: "The generation failed, or a bug; the message names the request's id.",
    502: "A remote engine's upstream failed.",
    503: "The engine is starting, stopping, dead, or its queue is full (then with `Retry-After`).",
    504: "A remote engine's upstream did not answer in time.",
}
_GENERATES = (400, 404, 405, 413, 415, 500, 502, 503, 504)
_COUNTS = (400, 404, 405, 413, 415, 500, 503)


@dataclass(frozen=True, slots=True)
class _Operation:
    """`answer`, `body` and `chunk` are names of the adapters' wire types, or JSON schemas."""

    method: str
    path: str
    summary: str
    answer: str | Mapping[str, Any]
    body: str | None = None
    chunk: str | None = None  # one server-sent event, where the answer may be streamed
    refusals: Sequence[int] = ()
    media_type: str = "application/json"
    unhealthy: bool = False  # 503 has the answer's own shape


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
    _Operation("get", "/v1/models", "List every model name.", "ModelList", refusals=(405,)),
    _Operation(
        "get", "/v1/models/{model}", "One model; names may contain slashes.", "ModelObject", refusals=(404, 405)
    ),
    _Operation(
        "post",
        "/tokenize",
        "Token ids of a text or a conversation.",
        "TokenizeAnswer",
        "TokenizeRequest",
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
    _Operation("get", "/health", "Whether every engine is able to answer.", _HEALTH_SCHEMA, unhealthy=True),
    _Operation("get", "/version", "The server's version.", _VERSION_SCHEMA),
    _Operation("get", "/metrics", "Prometheus metrics.", {"type": "string"}, media_type="text/plain"),
    _Operation("get", "/openapi.json", "This document.", {"type": "object"}),
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
    return {"$ref": f"#/components/schemas/{kind}"} if isinstance(kind, str) else kind


def _describe(operation: _Operation) -> dict[str, Any]:
    content = {operation.media_type: {"schema": _schema(operation.answer)}}
    if operation.chunk is not None:
        content["text/event-stream"] = {"schema": _schema(operation.chunk)}
    answer = {
        "description": operation.summary,
        "headers": {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}},
        "content": content,
    }
    responses: dict[str, Any] = {"200": answer}
    if operation.unhealthy:
        responses["503"] = {**answer, "description": "An engine is not able to answer."}
    for status in operation.refusals:
        responses[str(status)] = {"$ref": f"#/components/responses/Refusal{status}"}
    described: dict[str, Any] = {
        "operationId": operation.method + "".join(word.capitalize() for word in _words(operation.path)),
        "summary": operation.summary,
        "parameters": [{"$ref": "#/components/parameters/X-Request-Id"}],
        "responses": responses,
    }
    if "{model}" in operation.path:
        described["parameters"].append({"name": "model", "in": "path", "required": True, "schema": {"type": "string"}})
    if operation.body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _schema(operation.body)}},
        }
    return described


def _words(path: str) -> list[str]:
    return "".join(character if character.isalnum() else " " for character in path).split()
