"""POST /v1/messages on the wire: requests as the engine sees them, answers and streams as the SDK reads them."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from anthropic.types.shared.error_response import ErrorResponse

from adapters.anthropic_errors import messages_error
from adapters.anthropic_messages import MessagesAdapter, MessagesExchange, count_body, parse_count
from adapters.collect import Collector
from engines.api import (
    ChatPrompt,
    Done,
    Finish,
    GenerationEvent,
    GenerationRequest,
    JsonSchema,
    Started,
    StructuredOutput,
    TextDelta,
    Tokenized,
    ToolCallDelta,
    ToolChoice,
    Usage,
)
from engines.errors import (
    EngineUnavailable,
    GenerationFailed,
    HeadraceError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PromptTooLong,
)
from tests.adapters.driving import named_frames
from tests.adapters.sdk import read

EVENTS = {get_args(e.model_fields["type"].annotation)[0]: e for e in get_args(get_args(RawMessageStreamEvent)[0])}
TOOL = {"name": "add", "description": "Adds.", "input_schema": {"type": "object"}, "cache_control": {"type": "x"}}
ADD = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
USER = {"role": "user", "content": "Hi"}


def ask(**fields: Any) -> MessagesExchange:
    body = {"model": "m", "max_tokens": 100, "messages": [USER], **fields}
    return MessagesAdapter().parse(json.dumps(body).encode(), {}, "r1")


def asked(**fields: Any) -> GenerationRequest:
    return ask(**fields).requests[0]


def prompt(**fields: Any) -> ChatPrompt:
    asked_prompt = asked(**fields).prompt
    assert isinstance(asked_prompt, ChatPrompt)
    return asked_prompt


def said(*deltas: TextDelta) -> list[GenerationEvent]:
    usage = Usage(prompt_tokens=3, completion_tokens=9, cached_tokens=1, reasoning_tokens=2)
    return [Started(prompt_tokens=3, cached_tokens=1), *deltas, Done(usage)]


def whole(*deltas: TextDelta, **fields: Any) -> dict[str, Any]:
    exchange = ask(**fields)
    collector = Collector(exchange.requests[0])
    for event in said(*deltas):
        collector.add(event)
    answer = json.loads(exchange.response([collector.result()]))
    read(Message, answer)
    return answer


def frames(data: bytes) -> list[dict[str, Any]]:
    events = named_frames(data)
    for event in events:
        if event["type"] == "error":
            read(ErrorResponse, event)
        elif event["type"] != "ping":
            read(EVENTS[event["type"]], event)
    return events


def streamed(*deltas: TextDelta, **fields: Any) -> list[dict[str, Any]]:
    exchange = ask(stream=True, **fields)
    return frames(b"".join(exchange.frame(0, event) for event in said(*deltas)) + exchange.end())


EVERYTHING = (
    TextDelta(0, "", reasoning="Let me "),
    TextDelta(0, "The sum", reasoning="add."),
    TextDelta(0, " is"),
    TextDelta(0, "", tool_calls=(ToolCallDelta(0, '{"a":', "call_1", "add"),)),
    TextDelta(0, "", tool_calls=(ToolCallDelta(0, "1}"), ToolCallDelta(1, "{}", "call_2", "add"))),
    TextDelta(0, "", finish=Finish("tool_calls")),
)

# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "content"),
    [
        ("Be terse.", "Be terse."),
        ([{"type": "text", "text": "Be terse.", "cache_control": {"type": "ephemeral"}}], "Be terse."),
        ([{"type": "text", "text": t} for t in "ab"], [{"type": "text", "text": t} for t in "ab"]),
    ],
    ids=["string", "block", "blocks"],
)
def test_the_system_prompt_comes_first(system: Any, content: Any) -> None:
    assert prompt(system=system).messages == ({"role": "system", "content": content}, USER)


def test_blocks_become_chat_messages() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "1+1?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                {"type": "text", "text": "So"},
                {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": "ä"}},
                {"type": "tool_use", "id": "c2", "name": "add", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "2"},
                {
                    "type": "tool_result",
                    "tool_use_id": "c2",
                    "content": [{"type": "text", "text": "x"}],
                    "is_error": True,
                },
                {"type": "text", "text": "Well?"},
            ],
        },
    ]
    first = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": "ä"}'}}
    second = {"id": "c2", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    assert prompt(messages=messages).messages == (
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "reasoning_content": "Hm.", "content": "So", "tool_calls": [first, second]},
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
        {"role": "tool", "content": "Error: x", "tool_call_id": "c2"},
        {"role": "user", "content": "Well?"},
    )


def test_an_assistants_message_at_the_end_is_continued() -> None:
    continued = prompt(messages=[USER, {"role": "assistant", "content": "The answer is"}])
    assert (continued.continue_final_message, continued.add_generation_prompt) == (True, False)
    assert (prompt().continue_final_message, prompt().add_generation_prompt) == (False, True)


def test_fields_become_what_the_engine_is_asked() -> None:
    request = asked(
        temperature=0.5,
        top_p=0.25,
        top_k=4,
        stop_sequences=["x", "y"],
        stream=True,
        thinking={"type": "enabled", "budget_tokens": 50},
        output_config={"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        metadata={"user_id": "u"},
    )
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (100, 0.5, 0.25, 4)
    assert sampling.stop == ("x", "y")
    assert request.thinking_budget == 50
    assert request.stream
    form = JsonSchema({"type": "object"})
    assert request.structured_output == StructuredOutput(form, "output_config.format.schema")
    assert isinstance(request.prompt, ChatPrompt)
    assert request.prompt.template_kwargs == {"enable_thinking": True, "reasoning_effort": "low"}
    assert prompt(thinking={"type": "disabled"}).template_kwargs == {"enable_thinking": False}
    assert prompt().template_kwargs == {}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ToolChoice()),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolChoice(parallel=False)),
        ({"type": "any"}, ToolChoice("required")),
        ({"type": "tool", "name": "add"}, ToolChoice("named", "add")),
        ({"type": "none"}, ToolChoice("none")),
    ],
    ids=["absent", "auto", "any", "tool", "none"],
)
def test_tools_are_offered_as_chosen(choice: Any, expected: ToolChoice) -> None:
    request = asked(tools=[TOOL], tool_choice=choice)
    assert request.tool_choice == expected
    assert isinstance(request.prompt, ChatPrompt)
    assert request.prompt.tools == (None if expected.mode == "none" else (ADD,))


def user(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"messages": []}, "messages"),
        ({"max_tokens": None}, "max_tokens"),
        ({"odd": 1}, "odd"),
        (user({"type": "image", "source": {}}), "messages[0].content[0].type"),
        (user({"type": "document", "source": {}}), "messages[0].content[0].type"),
        (user({"type": "tool_use", "id": "c", "name": "f", "input": {}}), "messages[0].content[0].type"),
        (
            user({"type": "tool_result", "tool_use_id": "c", "content": [{"type": "image"}]}),
            "messages[0].content[0].content[0].type",
        ),
        ({"messages": [USER, {"role": "robot", "content": "x"}]}, "messages[1].role"),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]}
                ]
            },
            "messages[0]",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "enabled", "budget_tokens": 100}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ask(**fields)
    assert caught.value.field == field
    assert caught.value.message.startswith(f"{field}: ")


# --- answers ----------------------------------------------------------------------------------------------------------


def test_a_whole_answer_has_a_block_for_everything_said() -> None:
    answer = whole(*EVERYTHING)
    thinking, text, first, second = answer["content"]
    assert thinking["thinking"] == "Let me add."
    assert thinking["signature"]
    assert text == {"type": "text", "text": "The sum is"}
    assert first == {"type": "tool_use", "id": "call_1", "name": "add", "input": {"a": 1}}
    assert (second["id"], second["input"]) == ("call_2", {})
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("tool_use", None)
    assert answer["usage"]["input_tokens"] + answer["usage"]["cache_read_input_tokens"] == 3
    assert answer["usage"]["output_tokens_details"] == {"thinking_tokens": 2}


def test_a_stream_adds_up_to_the_whole_answer() -> None:
    events = streamed(*EVERYTHING)
    kinds = [event["type"].removeprefix("content_block_") for event in events]
    assert kinds == [
        "message_start",
        "ping",
        *("start", "delta", "delta", "delta", "stop"),
        *("start", "delta", "delta", "stop"),
        *("start", "delta", "delta", "stop"),
        *("start", "delta", "stop"),
        "message_delta",
        "message_stop",
    ]
    blocks: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append(dict(event["content_block"]))
        elif event["type"] == "content_block_delta":
            (name,) = set(event["delta"]) - {"type"}
            block = blocks[event["index"]]
            block[name] = block.get(name, "") + event["delta"][name]
    for block in blocks:
        if block["type"] == "tool_use":
            block["input"] = json.loads(block.pop("partial_json"))
    answer = whole(*EVERYTHING)
    assert blocks == answer["content"]
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"] == answer["usage"]
    assert events[0]["message"]["usage"]["input_tokens"] == answer["usage"]["input_tokens"]


@pytest.mark.parametrize(
    ("finish", "reason", "sequence"),
    [
        (Finish("stop"), "end_turn", None),
        (Finish("stop", 7), "end_turn", None),
        (Finish("stop", "x"), "stop_sequence", "x"),
        (Finish("length"), "max_tokens", None),
    ],
    ids=["eos", "token", "sequence", "length"],
)
def test_how_an_answer_ended_is_told(finish: Finish, reason: str, sequence: str | None) -> None:
    delta = TextDelta(0, "a", finish=finish)
    answer = whole(delta)
    assert (answer["stop_reason"], answer["stop_sequence"]) == (reason, sequence)
    assert streamed(delta)[-2]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


def test_arguments_that_are_no_object_stand_in_one() -> None:
    for arguments, value in (('{"a"', {"invalid_json": '{"a"'}), ("[1]", {"invalid_json": "[1]"}), ("", {})):
        call = ToolCallDelta(0, arguments, "c", "f")
        answer = whole(TextDelta(0, "", tool_calls=(call,), finish=Finish("length")))
        assert answer["content"][0]["input"] == value


def test_an_error_inside_a_stream_is_an_event() -> None:
    exchange = ask(stream=True)
    (event,) = frames(exchange.stream_error(GenerationFailed("lost"), 500))
    assert event["error"] == {"type": "api_error", "message": "lost"}


def test_an_answer_that_the_engine_gave_up_is_a_failure() -> None:
    given_up = TextDelta(0, "x", finish=Finish("abort"))
    assert streamed(given_up)[-1]["type"] == "error"
    with pytest.raises(GenerationFailed):
        whole(given_up)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (PromptTooLong("too long", field="messages"), 400, "invalid_request_error"),
        (ModelNotFound("x"), 404, "not_found_error"),
        (Overloaded("full"), 503, "overloaded_error"),
        (EngineUnavailable("starting"), 503, "api_error"),
        (HeadraceError("key"), 401, "authentication_error"),
        (HeadraceError("slow"), 504, "timeout_error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_have_anthropics_types(error: HeadraceError, status: int, kind: str) -> None:
    told: Any = messages_error(error, status)
    read(ErrorResponse, told)
    assert told["error"]["type"] == kind
    assert error.field is None or error.field in told["error"]["message"]


def test_tokens_are_counted_of_the_same_prompt() -> None:
    body = {"model": "m", "messages": [USER], "system": "S", "tools": [TOOL], "thinking": {"type": "disabled"}}
    call = parse_count(json.dumps(body).encode())
    assert call.prompt == asked(**body).prompt
    answer = json.loads(count_body(Tokenized((1, 2, 3))))
    read(MessageTokensCount, answer)
    assert answer == {"input_tokens": 3}
