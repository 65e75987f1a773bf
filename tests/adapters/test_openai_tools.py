"""Tools and reasoning on the wire: what a client may ask, and how answers tell calls and thoughts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.chat_completion_tool_union_param import ChatCompletionToolUnionParam
from pydantic import TypeAdapter

from engines.api import ChatPrompt, Done, Finish, GenerationEvent, Started, TextDelta, ToolCallDelta, ToolChoice, Usage
from engines.errors import InvalidRequest
from tests.adapters.driving import answer, chat, stream

F: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}
G: dict[str, Any] = {"type": "function", "function": {"name": "g", "description": "d"}}
NAMED = {"type": "function", "function": {"name": "g"}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize(
    ("fields", "tools", "choice"),
    [
        ({}, (F, G), ToolChoice()),
        ({"tool_choice": "auto", "parallel_tool_calls": True}, (F, G), ToolChoice()),
        ({"tool_choice": "required"}, (F, G), ToolChoice("required")),
        ({"tool_choice": NAMED, "parallel_tool_calls": False}, (F, G), ToolChoice("named", "g", parallel=False)),
        ({"tool_choice": "g"}, (F, G), ToolChoice("named", "g")),
        ({"tool_choice": {"function": {"name": "g"}}}, (F, G), ToolChoice("named", "g")),
        ({"tool_choice": "none"}, None, ToolChoice("none")),
        ({"tool_choice": allowed("required", "f")}, (F,), ToolChoice("required")),
        ({"tools": []}, None, ToolChoice()),
        ({"tools": None, "tool_choice": "auto"}, None, ToolChoice()),
    ],
    ids=["default", "auto", "required", "named", "by name", "TGI's", "none", "allowed", "no tools", "null"],
)
def test_tools_and_the_choice_among_them_reach_the_engine(fields: dict[str, Any], tools: Any, choice: ToolChoice):
    (request,) = chat(**({"tools": [F, G]} | fields)).requests
    assert isinstance(request.prompt, ChatPrompt)
    assert request.prompt.tools == tools
    assert request.tool_choice == choice


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice.function.name"),
        ({"tools": [F], "tool_choice": NAMED}, "tool_choice.function.name"),
        ({"tools": [F], "tool_choice": allowed("auto", "x")}, "tool_choice.allowed_tools.tools[0].function.name"),
        ({"tools": [F], "tool_choice": "maybe"}, "tool_choice.function.name"),
        ({"tools": [F], "tool_choice": {"type": "custom"}}, "tool_choice"),
        ({"tools": [F, F]}, "tools[1].function.name"),
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"thinking_token_budget": -2}, "thinking_token_budget"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_makes_no_sense_is_refused_by_name(fields: dict[str, Any], field: str):
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert caught.value.field == field


def test_the_sdks_function_tools_are_ours():
    TypeAdapter(list[ChatCompletionToolUnionParam]).validate_python([F, G])


CALLS: list[GenerationEvent] = [
    Started(prompt_tokens=2),
    TextDelta(0, "", 1, reasoning="Hm"),
    TextDelta(0, "", 1, reasoning="m"),
    TextDelta(0, "Let me", 1),
    TextDelta(0, "", 1, tool_calls=(ToolCallDelta(0, "", "id-0", "f"),)),
    TextDelta(0, "", 1, tool_calls=(ToolCallDelta(0, '{"a":'),)),
    TextDelta(0, "", 1, tool_calls=(ToolCallDelta(0, " 1}"), ToolCallDelta(1, "{}", "id-1", "g"))),
    TextDelta(0, "", 1, finish=Finish("tool_calls")),
    Done(Usage(prompt_tokens=2, completion_tokens=7, reasoning_tokens=2)),
]


def test_a_whole_answer_has_its_calls_and_its_reasoning_under_both_names():
    told = answer(chat(tools=[F, G]), CALLS)
    ChatCompletion.model_validate(told)
    (choice,) = told["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": "Let me",
        "refusal": None,
        "reasoning": "Hmm",
        "reasoning_content": "Hmm",
        "tool_calls": [
            {"id": "id-0", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
            {"id": "id-1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }
    assert told["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}


def test_an_answer_of_calls_alone_has_null_content():
    told = answer(chat(tools=[F]), [CALLS[0], CALLS[4], *CALLS[-2:]])
    assert told["choices"][0]["message"]["content"] is None


@pytest.mark.parametrize("fields", [{}, {"stream_options": {"continuous_usage_stats": True}}], ids=["plain", "usage"])
def test_a_stream_tells_id_and_name_once_and_then_fragments(fields: dict[str, Any]):
    chunks = stream(chat(tools=[F, G], stream=True, **fields), CALLS)[:-1]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[1:] == [
        {"reasoning": "Hm", "reasoning_content": "Hm"},
        {"reasoning": "m", "reasoning_content": "m"},
        {"content": "Let me"},
        {"tool_calls": [{"index": 0, "id": "id-0", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]},
        {
            "tool_calls": [
                {"index": 0, "function": {"arguments": " 1}"}},
                {"index": 1, "id": "id-1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ]
        },
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["tool_calls"]


def test_reasoning_is_left_out_where_it_is_not_wanted():
    told = answer(chat(include_reasoning=False), CALLS)
    assert not {"reasoning", "reasoning_content"} & told["choices"][0]["message"].keys()
    chunks = stream(chat(include_reasoning=False, stream=True), CALLS)
    assert "reasoning" not in json.dumps(chunks)
