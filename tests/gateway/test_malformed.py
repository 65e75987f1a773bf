"""Requests that cannot be honoured: each has the right status and OpenAI's error shape, and harms nobody else."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.gateway.live import Live

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
USER = {"role": "user", "content": "Hi"}


def chat(**fields: Any) -> tuple[str, Any]:
    return CHAT, {"model": "MODEL", "messages": [USER], "max_tokens": 4, **fields}


def text(**fields: Any) -> tuple[str, Any]:
    return TEXT, {"model": "MODEL", "prompt": "Hi", "max_tokens": 4, **fields}


CASES: dict[str, tuple[tuple[str, Any], int, str | None]] = {
    # name: (path, body), status, what the error's `param` starts with
    "empty-body": ((CHAT, b""), 400, None),
    "not-json": ((CHAT, b"hello"), 400, None),
    "cut-json": ((CHAT, b'{"model": "x", "mess'), 400, None),
    "two-documents": ((CHAT, b"{} {}"), 400, None),
    "not-utf8": ((CHAT, b'{"model": "\xff\xfe"}'), 400, None),
    "lone-surrogate": ((CHAT, b'{"model": "MODEL", "messages": [{"role": "user", "content": "\\ud800"}]}'), 400, None),
    "nan": ((CHAT, b'{"model": "MODEL", "messages": [], "temperature": NaN}'), 400, None),
    "array-body": ((CHAT, b"[]"), 400, None),
    "string-body": ((CHAT, b'"hi"'), 400, None),
    "null-body": ((CHAT, b"null"), 400, None),
    "deep-nesting": ((CHAT, b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), 400, None),
    "no-model": ((CHAT, {"messages": [USER]}), 400, "model"),
    "model-is-a-number": (chat(model=3), 400, "model"),
    "unknown-model": (chat(model="no-such-model"), 404, "model"),
    "no-messages": ((CHAT, {"model": "MODEL"}), 400, "messages"),
    "empty-messages": (chat(messages=[]), 400, "messages"),
    "messages-is-a-string": (chat(messages="Hi"), 400, "messages"),
    "message-without-role": (chat(messages=[{"content": "Hi"}]), 400, "messages[0]"),
    "unknown-role": (chat(messages=[{"role": "wizard", "content": "Hi"}]), 400, "messages[0]"),
    "content-is-a-number": (chat(messages=[{"role": "user", "content": 5}]), 400, "messages[0].content"),
    "unknown-content-part": (chat(messages=[{"role": "user", "content": [{"type": "smell"}]}]), 400, "messages[0]"),
    "unknown-field": (chat(frobnicate=1), 400, "frobnicate"),
    "temperature-too-high": (chat(temperature=3), 400, "temperature"),
    "temperature-is-a-string": (chat(temperature="0.5"), 400, "temperature"),
    "top-p-negative": (chat(top_p=-0.1), 400, "top_p"),
    "max-tokens-negative": (chat(max_tokens=-1), 400, "max_tokens"),
    "max-tokens-fraction": (chat(max_tokens=1.5), 400, "max_tokens"),
    "n-zero": (chat(n=0), 400, "n"),
    "n-huge": (chat(n=10**9), 400, "n"),
    "seed-beyond-64-bits": (chat(seed=2**64), 400, "seed"),
    "too-many-stops": (chat(stop=["x"] * 17), 400, "stop"),
    "empty-stop": (chat(stop=[""]), 400, "stop"),
    "logit-bias-of-a-word": (chat(logit_bias={"hello": 1}), 400, "logit_bias"),
    "too-many-top-logprobs": (chat(logprobs=True, top_logprobs=21), 400, "top_logprobs"),
    "top-logprobs-alone": (chat(top_logprobs=2), 400, "top_logprobs"),
    "stream-options-without-stream": (chat(stream_options={"include_usage": True}), 400, "stream_options"),
    "stream-is-a-string": (chat(stream="yes"), 400, "stream"),
    "response-format-unknown": (chat(response_format={"type": "poem"}), 400, "response_format"),
    "prompt-too-long": (chat(messages=[{"role": "user", "content": "word " * 1_000_000}]), 400, "messages"),
    "no-prompt": ((TEXT, {"model": "MODEL"}), 400, "prompt"),
    "empty-prompt-list": (text(prompt=[]), 400, "prompt"),
    "mixed-prompt-list": (text(prompt=["a", 1]), 400, "prompt"),
    "negative-token-id": (text(prompt=[-1]), 400, "prompt"),
    "best-of-below-n": (text(n=3, best_of=2), 400, "best_of"),
    "max-tokens-beyond-the-context": (text(max_tokens=2**31 - 1), 400, None),
    "tokenize-nothing": (("/tokenize", {"model": "MODEL"}), 400, None),
    "detokenize-a-string": (("/detokenize", {"model": "MODEL", "tokens": "abc"}), 400, "tokens"),
    "detokenize-unknown-model": (("/detokenize", {"model": "no-such-model", "tokens": [1]}), 404, "model"),
}


def both_ways(name: str) -> list[Any]:
    (path, body), *_ = CASES[name]
    streams = path in (CHAT, TEXT) and isinstance(body, dict) and not name.startswith("stream-")
    ways = [pytest.param(name, False, id=f"{name}-whole")]
    return [*ways, pytest.param(name, True, id=f"{name}-stream")] if streams else ways


@pytest.mark.parametrize(("name", "streamed"), [way for name in CASES for way in both_ways(name)])
def test_malformed_request_is_refused_in_openais_shape_and_the_server_lives(live: Live, name: str, streamed: bool):
    (path, body), status, param = CASES[name]
    if isinstance(body, dict):
        body = json.dumps(body | {"stream": True} if streamed else body).encode()
    with httpx.Client(base_url=live.url, timeout=60) as client:
        answer = client.post(
            path, content=body.replace(b"MODEL", live.model.encode()), headers={"content-type": "application/json"}
        )
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/json"
        error = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert 0 < len(error["message"]) < 1000
        assert "Traceback" not in error["message"]
        if param is not None:
            assert (error["param"] or "").startswith(param)
        path, body = chat(model=live.model)
        assert client.post(path, json=body).status_code == 200


def test_prompt_too_long_names_both_numbers(live: Live):
    max_model_len = httpx.get(f"{live.url}/v1/models").json()["data"][0]["max_model_len"]
    prompt = "word " * (2 * max_model_len)
    count = httpx.post(f"{live.url}/tokenize", json={"model": live.model, "prompt": prompt}, timeout=60).json()["count"]
    answer = httpx.post(f"{live.url}{TEXT}", json={"model": live.model, "prompt": prompt, "max_tokens": 1}, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert str(max_model_len) in answer.json()["error"]["message"]
    assert str(count) in answer.json()["error"]["message"]
