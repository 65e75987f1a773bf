"""OpenAI's routes under TGI's dialect: what its clients send is taken, and told where nobody looked at it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapters.adapter import Exchange
from adapters.openai_chat import ChatAdapter
from adapters.openai_chat_types import ChatCompletionRequest
from adapters.openai_completion_types import CompletionRequest
from adapters.openai_completions import CompletionsAdapter
from adapters.tgi import facts_of
from adapters.tgi_dialect import Dialect
from engines.api import ChatPrompt, ToolChoice
from engines.errors import InvalidRequest

CHAT = Dialect(ChatAdapter(tolerant=True), ChatCompletionRequest, lambda: "served", 4)
COMPLETE = Dialect(CompletionsAdapter(tolerant=True, max_tokens=None), CompletionRequest, lambda: "served", 4)
USER = {"role": "user", "content": "Hi"}
CALLING = {
    "role": "assistant",
    "tool_calls": [
        {"id": "0", "type": "function", "function": {"name": "f", "arguments": {"x": 1}, "description": None}}
    ],
}


def chat(*messages: dict[str, Any], **fields: Any) -> Exchange:
    return CHAT.parse(json.dumps({"messages": messages or (USER,), **fields}).encode(), {}, "r")


def complete(**fields: Any) -> Exchange:
    return COMPLETE.parse(json.dumps({"prompt": "Hi", **fields}).encode(), {}, "r")


def prompt(exchange: Exchange) -> ChatPrompt:
    found = exchange.requests[0].prompt
    assert isinstance(found, ChatPrompt)
    return found


@pytest.mark.parametrize(
    ("model", "name"),
    [({}, "served"), ({"model": None}, "served"), ({"model": "tgi"}, "served"), ({"model": "x"}, "x")],
    ids=str,
)
def test_a_request_need_not_name_a_model(model: dict[str, Any], name: str):
    assert chat(**model).requests[0].model == name


def test_unknown_fields_are_passed_over_wherever_they_stand_and_those_at_the_top_told():
    exchange = chat({**USER, "cache": 1}, frobnicate=True, stream_options=None, logit_bias=[0.5])
    assert prompt(exchange).messages == (USER,)
    assert list(facts_of(exchange).ignored) == ["frobnicate", "logit_bias"]
    assert facts_of(exchange).num_input_chars == 2
    assert facts_of(chat()).ignored == ()


def test_known_fields_keep_their_rules():
    with pytest.raises(InvalidRequest) as refused:
        chat(temperature="hot", frobnicate=1)
    assert refused.value.field == "temperature"


@pytest.mark.parametrize(
    ("final", "fields", "continues"),
    [
        (USER, {}, False),
        ({"role": "assistant", "content": "Once"}, {}, True),
        ({"role": "assistant", "content": "Once"}, {"add_generation_prompt": True}, False),
        ({"role": "assistant", "content": "Once"}, {"continue_final_message": False}, False),
    ],
    ids=["user", "assistant", "a new turn", "told not to"],
)
def test_a_final_message_of_the_assistant_is_continued_unless_the_request_says(
    final: dict[str, Any], fields: dict[str, Any], continues: bool
):
    found = prompt(chat(USER, final, **fields))
    assert (found.continue_final_message, found.add_generation_prompt) == (continues, not continues)


def test_calls_and_results_in_tgis_shapes_become_openais():
    messages = prompt(chat(USER, CALLING, {"role": "tool", "name": "f", "content": "2"})).messages
    assert messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": 1}'}
    assert messages[2] == {"role": "tool", "name": "f", "content": "2", "tool_call_id": "0"}


@pytest.mark.parametrize("choice", ["f", {"function": {"name": "f"}}, {"type": "function", "function": {"name": "f"}}])
def test_a_tool_is_chosen_by_its_name_in_any_of_the_shapes(choice: Any):
    schema = {"type": "object", "properties": {}}
    tool = {"type": "function", "function": {"name": "f", "arguments": schema}}
    exchange = chat(tools=[tool], tool_choice=choice)
    assert exchange.requests[0].tool_choice == ToolChoice("named", "f")
    assert prompt(exchange).tools == ({"type": "function", "function": {"name": "f", "parameters": schema}},)


def test_a_completion_goes_on_as_long_as_it_fits_unless_told():
    assert complete().requests[0].sampling.max_tokens is None
    assert complete(max_tokens=7).requests[0].sampling.max_tokens == 7


def test_more_prompts_than_the_server_takes_are_refused_with_both_numbers():
    assert len(complete(prompt=["a"] * 4).requests) == 4
    with pytest.raises(InvalidRequest, match=r"prompt: .* 4 .* 5"):
        complete(prompt=["a"] * 5)


def test_a_body_that_cannot_be_read_is_refused_by_the_adapter_behind():
    for body in (b"{", b"[]", b'{"messages": {}}', b'{"messages": []}', b'{"messages": ["x"]}'):
        with pytest.raises(InvalidRequest):
            CHAT.parse(body, {}, "r")
