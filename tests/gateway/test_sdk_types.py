"""Every answer and every event of a stream is what the SDKs' own types say it is: nothing missing, nothing unknown."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import anthropic.types
import httpx
import numpy as np
import openai.types
import pytest

from tests.adapters import sdk
from tests.gateway.live import Live

CHAT: Any = {"messages": [{"role": "user", "content": "Count from one to five."}], "max_tokens": 12, "temperature": 0}
RESPONSE: Any = {"input": "Count from one to five.", "max_output_tokens": 16, "temperature": 0}
SCHEMA: Any = {
    "type": "object",
    "properties": {"n": {"enum": [1, 2]}},
    "required": ["n"],
    "additionalProperties": False,
}
FUNCTION: Any = {"name": "f", "description": "d", "parameters": SCHEMA}
FORCED: Any = {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "required"}

TEXT: dict[str, tuple[str, Any]] = {
    "chat": ("/v1/chat/completions", CHAT),
    "chat, several choices and all counts": (
        "/v1/chat/completions",
        {**CHAT, "n": 2, "return_token_ids": True},
    ),
    "completion": ("/v1/completions", {"prompt": ["One, two,", "a"], "max_tokens": 6, "echo": True}),
    "response": ("/v1/responses", RESPONSE),
    "message": ("/v1/messages", CHAT),
}
MODEL: dict[str, tuple[str, Any]] = {
    "chat with logprobs": ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2}),
    "chat with calls": ("/v1/chat/completions", {**CHAT, "max_tokens": 60, **FORCED}),
    "completion with logprobs": ("/v1/completions", {"prompt": "One, two,", "max_tokens": 6, "logprobs": 2}),
    "response with logprobs": ("/v1/responses", {**RESPONSE, "include": ["message.output_text.logprobs"]}),
    "response with calls": (
        "/v1/responses",
        {**RESPONSE, "max_output_tokens": 60, "tools": [{"type": "function", **FUNCTION, "strict": True}],
         "tool_choice": "required"},
    ),
    "response in a form": (
        "/v1/responses",
        {**RESPONSE, "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}}},
    ),
    "message with calls": (
        "/v1/messages",
        {**CHAT, "max_tokens": 60, "tools": [{"name": "f", "input_schema": SCHEMA}], "tool_choice": {"type": "any"}},
    ),
}  # fmt: skip

READ: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "/v1/chat/completions": (sdk.chat_completion, sdk.chat_chunk),
    "/v1/completions": (sdk.completion, sdk.completion),
    "/v1/responses": (sdk.response, sdk.response_event),
    "/v1/messages": (sdk.message, sdk.message_event),
}


def events(answer: httpx.Response) -> list[Any]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def check(live: Live, path: str, fields: Any) -> None:
    read, read_event = READ[path]
    body = {"model": live.model, **fields}
    with httpx.Client(base_url=live.url, timeout=120) as client:
        whole = client.post(path, json=body)
        assert whole.status_code == 200, whole.text
        read(whole.json())
        if path in ("/v1/chat/completions", "/v1/completions"):
            body["stream_options"] = {"include_usage": True}
        told = events(client.post(path, json={**body, "stream": True}))
        assert len(told) > 2
        for event in told:
            read_event(event)


@pytest.mark.parametrize(("path", "fields"), TEXT.values(), ids=TEXT)
def test_text_is_told_in_the_sdks_types(live: Live, path: str, fields: Any):
    check(live, path, fields)


@pytest.mark.parametrize(("path", "fields"), MODEL.values(), ids=MODEL)
def test_what_needs_a_model_is_told_in_the_sdks_types(native_live: Live, path: str, fields: Any):
    check(native_live, path, fields)


def test_models_are_listed_in_each_sdks_type(live: Live):
    with httpx.Client(base_url=live.url) as client:
        listed = client.get("/v1/models").json()
        assert listed.keys() == {"object", "data"}
        for model in listed["data"]:
            sdk.read(openai.types.Model, model)
        page = client.get("/v1/models", headers={"anthropic-version": "2023-06-01"}).json()
        assert page.keys() == {"data", "has_more", "first_id", "last_id"}
        for model in page["data"]:
            sdk.read(anthropic.types.ModelInfo, model)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings_are_told_in_the_sdks_type(live: Live, encoding: str):
    body = {"model": live.model, "input": ["One.", "Two, three."], "encoding_format": encoding}
    answer = httpx.post(f"{live.url}/v1/embeddings", json=body, timeout=60).json()
    if encoding == "base64":  # which the SDK decodes before it reads
        for one in answer["data"]:
            one["embedding"] = np.frombuffer(base64.b64decode(one["embedding"]), "<f4").tolist()
    told = sdk.read(openai.types.CreateEmbeddingResponse, answer)
    assert len(told.data) == 2


def test_counted_tokens_are_told_in_the_sdks_type(live: Live):
    body = {"model": live.model, "messages": CHAT["messages"]}
    sdk.read(anthropic.types.MessageTokensCount, httpx.post(f"{live.url}/v1/messages/count_tokens", json=body).json())
