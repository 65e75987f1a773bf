from __future__ import annotations

import json
from typing import Any

import pytest

from adapters.openai_chat_types import ChatCompletionRequest
from adapters.wire import MAX_MESSAGE_CHARS, MAX_PATH_CHARS, parse_body
from engines.errors import InvalidRequest

USER: dict[str, Any] = {"role": "user", "content": "Hi"}
VALID: dict[str, Any] = {"model": "m", "messages": [USER]}


def refusal(body: bytes | dict[str, Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_body(ChatCompletionRequest, body if isinstance(body, bytes) else json.dumps(body).encode())
    return caught.value


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param(b"", "line 1 column 0", id="empty"),
        pytest.param(b'{"model": "m",\n "messages" [', "line 2 column 13", id="cut"),
        pytest.param(b"{'model': 'm'}", "line 1 column 2", id="single-quotes"),
        pytest.param(b'{"model": "\xff"}', "line 1 column 12", id="not-utf-8"),
        pytest.param(b'{"model": "\\ud800"}', "line 1 column 18", id="lone-surrogate"),
        pytest.param(b"[" * 100_000, "recursion", id="deep"),
    ],
)
def test_malformed_json_is_refused_with_its_position(body: bytes, says: str) -> None:
    error = refusal(body)
    assert error.message.startswith("The request body is not valid JSON: ")
    assert says in error.message
    assert (error.field, error.code) == (None, "invalid_json")


@pytest.mark.parametrize("body", [b"[]", b"3", b'"x"', b"null", b"true"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    assert refusal(body).message == "The request body must be a JSON object."


@pytest.mark.parametrize(
    ("change", "field", "code", "says"),
    [
        ({"temperature": 2.5}, "temperature", "invalid_value", "must be less than or equal to 2 (got 2.5)"),
        ({"temperature": "1"}, "temperature", "invalid_type", "must be a valid number (got '1')"),
        ({"temperature": True}, "temperature", "invalid_type", "must be a valid number (got true)"),
        ({"top_p": float("nan")}, "top_p", "invalid_value", "must be a finite number (got nan)"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_type", "(got 1.5)"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value", "must be greater than or equal to 1 (got 0)"),
        ({"n": 129}, "n", "invalid_value", "must be less than or equal to 128 (got 129)"),
        ({"seed": 2**63}, "seed", "invalid_value", "9223372036854775807"),
        ({"seed": 10**4000}, "seed", "invalid_value", "(got a huge number)"),
        ({"stop": ["a", ""]}, "stop[1]", "invalid_value", "must have at least 1 character"),
        ({"stop": ["a"] * 17}, "stop", "invalid_value", "must have at most 16 items, not 17"),
        ({"logit_bias": {"12": 100.5}}, "logit_bias.12", "invalid_value", "must be less than or equal to 100"),
        ({"logit_bias": {"the": 1}}, "logit_bias", "invalid_value", 'keys must be token ids, such as "50256"'),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias", "invalid_value", "keys must be token ids"),
        ({"model": None}, "model", "invalid_type", "(got null)"),
        ({"messages": []}, "messages", "invalid_value", "must have at least 1 item, not 0"),
        ({"messages": ["x"]}, "messages[0]", "invalid_type", "must be an object (got 'x')"),
        ({"messages": [USER, {"content": "x"}]}, "messages[1].role", "missing_required_parameter", "required"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role", "invalid_value", "(got 'robot')"),
        ({"messages": [USER, {"role": "user"}]}, "messages[1].content", "missing_required_parameter", "required"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "invalid_type", "(got 3)"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]},
            "messages[0].content[0].type",
            "invalid_value",
            "must be 'text' (got 'image_url')",
        ),
        ({"messages": [{**USER, "user": 1}]}, "messages[0].user", "unknown_parameter", "not known"),
        ({"stream_options": {"usage": True}}, "stream_options.usage", "unknown_parameter", "not known"),
        ({"max_token": 3}, "max_token", "unknown_parameter", "not known"),
        ({"<odd>": 3}, "<odd>", "unknown_parameter", "not known"),
    ],
)
def test_a_refusal_names_the_field_and_the_limit(change: dict[str, Any], field: str, code: str, says: str) -> None:
    error = refusal(VALID | change)
    assert (error.field, error.code) == (field, code)
    assert error.message.startswith(f"{field}: ")
    assert says in error.message


def test_a_refusal_names_the_first_of_many_mistakes_only() -> None:
    error = refusal(VALID | {"messages": [{"role": "user", "content": 1}] * 10_000})
    assert error.message.count("messages[") == 1
    assert error.field == "messages[0].content"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"x" * 100_000: 1}, id="name"),
        pytest.param({"temperature": "x" * 100_000}, id="value"),
        pytest.param({"reasoning_effort": "\x00" * 100_000}, id="value-that-grows-when-escaped"),
        pytest.param({"messages": [{"role": "x" * 100_000}]}, id="role"),
        pytest.param({"logit_bias": {"1" * 8: "x" * 100_000}}, id="nested"),
    ],
)
def test_a_refusal_echoes_little_of_the_request(change: dict[str, Any]) -> None:
    error = refusal(VALID | change)
    assert len(error.message) <= MAX_MESSAGE_CHARS
    assert error.message.count("x") + error.message.count("\\x00") < 200
    assert error.field is not None
    assert len(error.field) <= MAX_PATH_CHARS


def test_the_refusal_carries_no_validation_error_along() -> None:
    error = refusal(VALID | {"temperature": 3})
    assert error.__cause__ is None
    assert error.__suppress_context__
