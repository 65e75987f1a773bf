"""Tool calls over HTTP with the OpenAI SDK and langchain-openai, on a real model whose template knows no tools."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import OpenAI
from pydantic import BaseModel

from tests.gateway.live import Live

MESSAGES: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
GREEDY: Any = {"model": "smollm2", "temperature": 0, "max_tokens": 120}


class GetWeather(BaseModel):
    """Tells the weather of a city."""

    city: str
    unit: str


def function(name: str, properties: dict[str, Any], **more: Any) -> Any:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters, **more}}


WEATHER = function("get_weather", {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}})
ADD = function("add", {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": [1, 2]}})


@pytest.fixture
def client(native_live: Live):
    with OpenAI(base_url=f"{native_live.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        yield client


def check(call: Any) -> None:
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_weather":
        assert set(arguments) == {"city", "unit"}
        assert arguments["unit"] in ("C", "F")
    else:
        assert call.function.name == "add"
        assert 0 <= arguments["a"] <= 99
        assert arguments["b"] in (1, 2)


@pytest.mark.parametrize(
    "choice",
    ["required", {"type": "function", "function": {"name": "add"}}],
    ids=["required", "named"],
)
def test_calls_that_must_be_made_are_made_and_valid(client: OpenAI, choice: Any):
    for seed in range(3):
        sampled = {**GREEDY, "temperature": 1.2, "seed": seed}
        answer = client.chat.completions.create(
            messages=MESSAGES, tools=[WEATHER, ADD], tool_choice=choice, parallel_tool_calls=False, **sampled
        )
        (chosen,) = answer.choices
        assert chosen.finish_reason == "tool_calls"
        assert chosen.message.content is None
        (call,) = chosen.message.tool_calls or ()
        assert len(call.id) >= 9
        check(call)
        assert choice == "required" or call.function.name == "add"  # type: ignore[union-attr]


def test_a_stream_tells_the_calls_of_the_whole_answer(client: OpenAI):
    fields: Any = {
        "tools": [WEATHER, ADD],
        "tool_choice": "required",
        "messages": MESSAGES,
        **GREEDY,
        "max_tokens": 300,
    }
    whole = client.chat.completions.create(**fields).choices[0]
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    finishes = []
    for chunk in client.chat.completions.create(stream=True, **fields):
        for choice in chunk.choices:
            assert not choice.delta.content
            finishes += [choice.finish_reason] if choice.finish_reason else []
            for call in choice.delta.tool_calls or ():
                assert (call.index in names) == (call.id is None)
                if call.id is not None:
                    names[call.index] = call.function.name
                arguments[call.index] = arguments.get(call.index, "") + (call.function.arguments or "")
    calls = whole.message.tool_calls or []
    assert names == {i: call.function.name for i, call in enumerate(calls)}  # type: ignore[union-attr]
    assert arguments == {i: call.function.arguments for i, call in enumerate(calls)}  # type: ignore[union-attr]
    assert finishes == [whole.finish_reason]
    for call in calls:
        check(call)


def test_an_answer_ends_when_the_model_begins_to_repeat_its_calls(client: OpenAI):
    fields: Any = {"tools": [ADD], "tool_choice": "required", **GREEDY, "max_tokens": 400}
    answer = client.chat.completions.create(messages=[{"role": "user", "content": "Add 4 and 2."}], **fields)
    (choice,) = answer.choices
    calls = [call.function.arguments for call in choice.message.tool_calls or ()]  # type: ignore[union-attr]
    assert choice.finish_reason == "tool_calls"
    assert 1 <= len(calls) == len(set(calls)) < 16
    assert answer.usage
    assert answer.usage.completion_tokens < 400


def test_a_named_tool_is_called_once(client: OpenAI):
    choice: Any = {"type": "function", "function": {"name": "add"}}
    answer = client.chat.completions.create(messages=MESSAGES, tools=[WEATHER, ADD], tool_choice=choice, **GREEDY)
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls or ()
    check(call)


def test_the_sdks_stream_helper_and_parse_take_strict_tools(client: OpenAI):
    tools = [openai.pydantic_function_tool(GetWeather)]
    with client.chat.completions.stream(messages=MESSAGES, tools=tools, tool_choice="required",
                                        parallel_tool_calls=False, **GREEDY) as stream:  # fmt: skip
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    (call,) = final.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, GetWeather)
    parsed = client.chat.completions.parse(
        messages=MESSAGES, tools=tools, tool_choice="required", parallel_tool_calls=False, **GREEDY
    )
    (call,) = parsed.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, GetWeather)


def test_the_model_may_answer_in_words_and_must_when_told_to(client: OpenAI):
    for choice in ("auto", "none"):
        answer = client.chat.completions.create(messages=MESSAGES, tools=[WEATHER], tool_choice=choice, **GREEDY)
        (chosen,) = answer.choices
        assert chosen.message.content or chosen.message.tool_calls
        if choice == "none":
            assert chosen.message.tool_calls is None
            assert "<tool_call>" not in (chosen.message.content or "")


def test_results_are_fed_back_and_the_conversation_goes_on(client: OpenAI):
    fields: Any = {"tools": [WEATHER], **GREEDY}
    first = (
        client.chat.completions.create(messages=MESSAGES, tool_choice="required", parallel_tool_calls=False, **fields)
        .choices[0]
        .message
    )
    (call,) = first.tool_calls or ()
    history = [*MESSAGES, first, {"role": "tool", "tool_call_id": call.id, "content": "18 degrees and rain"}]
    answer = client.chat.completions.create(messages=history, tool_choice="none", **fields)
    assert answer.choices[0].message.content
    alone = client.chat.completions.create(messages=MESSAGES, tool_choice="none", **fields)
    assert answer.usage
    assert alone.usage
    assert answer.usage.prompt_tokens > alone.usage.prompt_tokens + 20


@pytest.mark.parametrize("stream", [False, True])
def test_a_strict_tool_that_cannot_be_enforced_is_a_400_and_a_loose_one_is_not(client: OpenAI, stream: bool):
    schema = {"tags": {"type": "array", "uniqueItems": True, "items": {"enum": ["a", "b"]}, "maxItems": 2}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            messages=MESSAGES, tools=[function("f", schema, strict=True)], stream=stream, **GREEDY
        )
    assert refused.value.param == "tools"
    assert "uniqueItems" in str(refused.value)
    loose = client.chat.completions.create(
        messages=MESSAGES, tools=[function("f", schema)], tool_choice="required", parallel_tool_calls=False, **GREEDY
    )
    assert loose.choices[0].message.tool_calls


# --- langchain --------------------------------------------------------------------------------------------------------


@tool
def get_weather(city: str) -> str:
    """Tells the weather of a city."""
    return f"Rain in {city}."


@pytest.fixture
def chat(native_live: Live) -> ChatOpenAI:
    settings: dict[str, Any] = {"base_url": f"{native_live.url}/v1", "api_key": "none", "max_retries": 0}
    return ChatOpenAI(model="smollm2", temperature=0, max_tokens=120, **settings)


def test_langchain_binds_tools_and_sends_results_back(chat: ChatOpenAI):
    question = HumanMessage("What is the weather in Paris?")
    bound = chat.bind_tools([get_weather], tool_choice="get_weather", parallel_tool_calls=False)
    answer = bound.invoke([question])
    assert isinstance(answer, AIMessage)
    (call,) = answer.tool_calls
    assert call["name"] == "get_weather"
    result = get_weather.invoke(call)
    assert isinstance(result, ToolMessage)
    assert chat.invoke([question, answer, result]).text


def test_langchain_streams_the_calls_that_it_invokes(chat: ChatOpenAI):
    bound = chat.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False)
    whole = bound.invoke("What is the weather in Paris?")
    chunks = list(bound.stream("What is the weather in Paris?"))
    told = sum(chunks[1:], start=chunks[0])
    assert [(call["name"], call["args"]) for call in told.tool_calls] == [
        (call["name"], call["args"]) for call in whole.tool_calls
    ]


def test_langchain_structured_output_by_function_calling(chat: ChatOpenAI):
    structured = chat.with_structured_output(GetWeather, method="function_calling")
    assert isinstance(structured.invoke("The weather in Paris, please."), GetWeather)
