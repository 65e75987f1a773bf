"""Whatever arrives as JSON is a request or a refusal, and nothing else happens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.adapter import Adapter
from adapters.openai_chat import ChatAdapter
from adapters.openai_chat_types import ChatCompletionRequest
from adapters.openai_completion_types import CompletionRequest
from adapters.openai_completions import CompletionsAdapter
from adapters.tokenize import TokenizeRequest, parse_detokenize, parse_tokenize
from adapters.wire import MAX_MESSAGE_CHARS
from engines.errors import InvalidRequest

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, -1, 2**31, 2**63, -(2**63) - 1, 10**400])
    | st.floats()
    | st.text(max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
COMPLETION: dict[str, Any] = {"model": "m", "prompt": "Hi"}

roles = st.sampled_from(["system", "developer", "user", "assistant", "tool", "function", "robot"])
part_types = st.sampled_from(["text", "image_url", "refusal"])
parts = st.lists(
    st.fixed_dictionaries({"type": part_types | values}, optional={"text": st.text() | values}), max_size=3
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": roles | values},
        optional={
            "content": st.text() | parts | values,
            "name": values,
            "tool_calls": values,
            "tool_call_id": st.text() | values,
            "refusal": values,
            "reasoning": values,
        },
    )
    | values,
    max_size=4,
)


def bodies(model: Any, valid: dict[str, Any], **likely: Any) -> st.SearchStrategy[dict[str, Any]]:
    """A valid body with some of the model's fields, or odd ones, set to anything; often not valid then."""
    names = st.sampled_from(sorted(model.model_fields)) | st.text(max_size=6)
    changes = st.dictionaries(names, scalars | values, max_size=3)
    needed = st.fixed_dictionaries({}, optional={"model": st.text(max_size=3) | values} | likely)
    return st.builds(lambda *parts: valid | parts[0] | parts[1], changes, st.just({}) | needed)


prompts = st.text() | st.lists(st.integers()) | st.lists(st.text()) | st.lists(st.lists(st.integers())) | values


def check_refusal(error: InvalidRequest) -> None:
    assert error.message
    assert len(error.message) <= MAX_MESSAGE_CHARS
    assert error.code


@pytest.mark.parametrize(
    ("adapter", "strategy"),
    [
        pytest.param(ChatAdapter(), bodies(ChatCompletionRequest, CHAT, messages=messages), id="chat"),
        pytest.param(CompletionsAdapter(), bodies(CompletionRequest, COMPLETION, prompt=prompts), id="completions"),
    ],
)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_object_is_a_request_or_a_refusal(
    adapter: Adapter, strategy: st.SearchStrategy[dict[str, Any]], data: st.DataObject
) -> None:
    body = json.dumps(data.draw(strategy)).encode()
    try:
        exchange = adapter.parse(body, {}, "r")
    except InvalidRequest as error:
        check_refusal(error)
    else:
        assert exchange.requests
        assert isinstance(adapter.error(InvalidRequest("x"), 400), bytes)


@given(bodies(TokenizeRequest, {}, messages=messages, prompt=prompts), st.lists(st.integers()) | values)
@settings(max_examples=100, deadline=None)
def test_any_object_is_a_tokenize_call_or_a_refusal(body: dict[str, Any], tokens: object) -> None:
    for parse, sent in ((parse_tokenize, body), (parse_detokenize, {"tokens": tokens})):
        try:
            parse(json.dumps(sent).encode())
        except InvalidRequest as error:
            check_refusal(error)


@given(st.binary(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_request_or_a_refusal(body: bytes) -> None:
    for adapter in (ChatAdapter(), CompletionsAdapter()):
        with pytest.raises(InvalidRequest) as caught:
            adapter.parse(body, {}, "r")
        check_refusal(caught.value)
