"""POST /v1/responses on the wire: requests as the engine sees them, answers and streams as the SDK reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, get_args

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_item_list import ResponseItemList

from adapters.collect import Collector
from adapters.openai_responses import ResponsesAdapter, ResponsesExchange
from adapters.openai_responses_store import item_list_body, item_page
from engines.api import (
    ChatPrompt,
    Done,
    Finish,
    GenerationEvent,
    GenerationRequest,
    JsonObject,
    JsonSchema,
    Started,
    StructuredOutput,
    TextDelta,
    ToolCallDelta,
    ToolChoice,
    Usage,
)
from engines.errors import GenerationFailed, InvalidRequest, PromptTooLong
from gateway.response_store import MemoryStore
from tests.adapters.driving import logprob, named_frames
from tests.adapters.sdk import read

EVENTS = {
    get_args(event.model_fields["type"].annotation)[0]: event for event in get_args(get_args(ResponseStreamEvent)[0])
}
TOOL = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": True}
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}, "strict": True}}


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(2**20)


def ask(store: MemoryStore | None = None, /, **fields: Any) -> ResponsesExchange:
    body = {"model": "m", "input": "Hi", **fields}
    return ResponsesAdapter(store or MemoryStore(2**20)).parse(json.dumps(body).encode(), {}, "r1")


def asked(**fields: Any) -> GenerationRequest:
    return ask(**fields).requests[0]


def messages(**fields: Any) -> list[dict[str, Any]]:
    prompt = asked(**fields).prompt
    assert isinstance(prompt, ChatPrompt)
    return [dict(message) for message in prompt.messages]


def said(*deltas: TextDelta) -> list[GenerationEvent]:
    return [Started(prompt_tokens=3), *deltas, Done(Usage(prompt_tokens=3, completion_tokens=9, cached_tokens=1))]


def whole(exchange: ResponsesExchange, *deltas: TextDelta) -> dict[str, Any]:
    collector = Collector(exchange.requests[0])
    for event in said(*deltas):
        collector.add(event)
    answer = json.loads(exchange.response([collector.result()]))
    read(Response, answer)
    return answer


def frames(data: bytes) -> list[dict[str, Any]]:
    events = named_frames(data)
    for event in events:
        read(EVENTS[event["type"]], event)
    return events


def streamed(exchange: ResponsesExchange, events: Sequence[GenerationEvent]) -> list[dict[str, Any]]:
    told = frames(b"".join(exchange.frame(0, event) for event in events) + exchange.end())
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    return told


def without_ids(value: Any) -> Any:
    """Ids and times are each answer's own."""
    if isinstance(value, dict):
        return {k: without_ids(v) for k, v in value.items() if k not in ("id", "item_id", "created_at", "completed_at")}
    return [without_ids(item) for item in value] if isinstance(value, list) else value


EVERYTHING = (
    TextDelta(0, "", reasoning="Let me "),
    TextDelta(0, "The sum", reasoning="add."),
    TextDelta(0, " is"),
    TextDelta(0, "", tool_calls=(ToolCallDelta(0, '{"a":', "call_1", "add"),)),
    TextDelta(0, "", tool_calls=(ToolCallDelta(0, "1}"), ToolCallDelta(1, "{}", "call_2", "add"))),
    TextDelta(0, "", finish=Finish("tool_calls")),
)

# --- requests ---------------------------------------------------------------------------------------------------------


def test_instructions_come_first_and_a_text_is_what_the_user_says() -> None:
    assert messages(instructions="Be terse.") == [
        {"role": "system", "content": "Be terse."},
        {"role": "user", "content": "Hi"},
    ]


def test_what_the_assistant_did_in_a_row_is_one_message() -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "1+1?"}, {"type": "input_text", "text": "Now."}]},
        {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "So", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}", "caller": None},
        {"type": "function_call", "call_id": "c2", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "2"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "3"}]},
        {"role": "assistant", "content": "2"},
        {"role": "assistant", "content": "or 3"},
    ]
    call = {"type": "function", "function": {"name": "add", "arguments": "{}"}}
    assert messages(input=items) == [
        {"role": "user", "content": [{"type": "text", "text": "1+1?"}, {"type": "text", "text": "Now."}]},
        {
            "role": "assistant",
            "reasoning_content": "Hm.",
            "content": "So",
            "tool_calls": [{"id": "c1", **call}, {"id": "c2", **call}],
        },
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
        {"role": "tool", "content": "3", "tool_call_id": "c2"},
        {"role": "assistant", "content": "2"},
        {"role": "assistant", "content": "or 3"},
    ]


def test_fields_become_what_the_engine_is_asked() -> None:
    schema = {"type": "object"}
    request = asked(
        max_output_tokens=7,
        temperature=0.5,
        top_p=0.25,
        text={"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}},
        reasoning={"effort": "none", "summary": "auto"},
        include=["message.output_text.logprobs"],
        top_logprobs=2,
        stream=True,
        user="u",
    )
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.logprobs) == (7, 0.5, 0.25, 2)
    assert request.structured_output == StructuredOutput(JsonSchema(schema, "n", True), "text.format.schema")
    assert isinstance(request.prompt, ChatPrompt)
    assert request.prompt.template_kwargs == {"reasoning_effort": "none", "enable_thinking": False}
    assert request.forwarded == {"user": "u", "reasoning_effort": "none"}
    assert request.stream
    form = asked(text={"format": {"type": "json_object"}}).structured_output
    assert form == StructuredOutput(JsonObject(), "text.format")


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ToolChoice()),
        ("required", ToolChoice("required")),
        ({"type": "function", "name": "add"}, ToolChoice("named", "add")),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "add"}]},
            ToolChoice("required"),
        ),
    ],
    ids=["auto", "required", "named", "allowed"],
)
def test_tools_are_offered_as_chosen(choice: Any, expected: ToolChoice) -> None:
    other = {"type": "function", "name": "other"}
    request = asked(tools=[TOOL, other], tool_choice=choice)
    assert request.tool_choice == expected
    assert isinstance(request.prompt, ChatPrompt)
    assert request.prompt.tools is not None
    assert request.prompt.tools[0] == ADD
    assert len(request.prompt.tools) == (1 if isinstance(choice, dict) and "tools" in choice else 2)
    assert asked(tools=[TOOL], tool_choice="none").prompt.tools is None  # pyright: ignore
    assert not asked(tools=[TOOL], parallel_tool_calls=False).tool_choice.parallel


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "reasoning", "encrypted_content": "x"}]}, "input[0].encrypted_content"),
        ({"odd": 1}, "odd"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"previous_response_id": "resp_x"}, "previous_response_id"),
        ({"text": {"verbosity": "high"}}, "text.verbosity"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_tokens": 5}, "max_tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ask(**fields)
    assert caught.value.field == field


# --- answers ----------------------------------------------------------------------------------------------------------


def test_a_whole_answer_has_its_items_and_repeats_what_was_asked() -> None:
    exchange = ask(tools=[TOOL], metadata={"a": "b"}, max_output_tokens=50, reasoning={"effort": "low"})
    answer = whole(exchange, *EVERYTHING)
    thought, message, first, second = answer["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "Let me add."}]
    assert message["content"] == [{"type": "output_text", "text": "The sum is", "annotations": [], "logprobs": []}]
    assert (first["call_id"], first["name"], first["arguments"]) == ("call_1", "add", '{"a":1}')
    assert (second["call_id"], second["arguments"]) == ("call_2", "{}")
    assert {item["status"] for item in answer["output"]} == {"completed"}
    assert len({item["id"] for item in answer["output"]}) == 4
    assert (answer["status"], answer["metadata"], answer["max_output_tokens"]) == ("completed", {"a": "b"}, 50)
    assert answer["usage"]["total_tokens"] == 12
    assert answer["usage"]["input_tokens_details"]["cached_tokens"] == 1
    assert answer["tools"] == [TOOL]


def test_a_stream_tells_its_events_in_order_and_ends_with_the_whole_answer() -> None:
    events = streamed(ask(stream=True), said(*EVERYTHING))
    text = ["content_part.added", "{}.delta", "{}.delta", "{}.done", "content_part.done"]
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        *(kind.format("reasoning_text") for kind in text),
        "output_item.done",
        "output_item.added",
        *(kind.format("output_text") for kind in text),
        "output_item.done",
        "output_item.added",
        *("function_call_arguments.delta",) * 2,
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    final = events[-1]["response"]
    assert without_ids(final) == without_ids(whole(ask(), *EVERYTHING))
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == final["output"]
    assert [event["output_index"] for event in events if event["type"] == "response.output_item.added"] == [0, 1, 2, 3]
    ids = {event["item_id"] for event in events if "item_id" in event}
    assert ids == {item["id"] for item in final["output"]}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_cut_by_its_length_is_incomplete(stream: bool) -> None:
    deltas = (TextDelta(0, "Hel"), TextDelta(0, "lo", finish=Finish("length")))
    exchange = ask(stream=stream)
    events = streamed(exchange, said(*deltas)) if stream else []
    answer = events[-1]["response"] if stream else whole(exchange, *deltas)
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answer["output"][0]["status"] == "incomplete"
    assert not stream or events[-1]["type"] == "response.incomplete"


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_stand_at_the_text_they_belong_to(stream: bool) -> None:
    a, b = logprob(1, "a", -0.5, (1, "a", -0.5)), logprob(2, "b", -0.25, (2, "b", -0.25))
    deltas = (TextDelta(0, "", 1, (), (a,)), TextDelta(0, "ab", 1, (), (b,)), TextDelta(0, "", finish=Finish("stop")))
    exchange = ask(stream=stream, include=["message.output_text.logprobs"], top_logprobs=1)
    answer = streamed(exchange, said(*deltas))[-1]["response"] if stream else whole(exchange, *deltas)
    tokens = answer["output"][0]["content"][0]["logprobs"]
    assert [(token["token"], token["logprob"], len(token["top_logprobs"])) for token in tokens] == [
        ("a", -0.5, 1),
        ("b", -0.25, 1),
    ]


def test_an_error_inside_a_stream_fails_the_response() -> None:
    exchange = ask(stream=True)
    data = b"".join(exchange.frame(0, event) for event in said(TextDelta(0, "Hel"))[:-1])
    events = frames(data + exchange.stream_error(GenerationFailed("lost"), 500))
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"] == {"code": "server_error", "message": "lost"}
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "Hel"


def test_an_answer_that_the_engine_gave_up_is_a_failure() -> None:
    given_up = TextDelta(0, "x", finish=Finish("abort"))
    assert streamed(ask(stream=True), said(given_up))[-1]["type"] == "response.failed"
    with pytest.raises(GenerationFailed):
        whole(ask(), given_up)


def test_refusals_name_fields_as_this_route_has_them() -> None:
    body = ResponsesAdapter(MemoryStore(0)).error(PromptTooLong("messages: too long", field="messages"), 400)
    assert json.loads(body)["error"]["param"] == "input"


# --- chains of responses ----------------------------------------------------------------------------------------------

HELLO = TextDelta(0, "Hello", finish=Finish("stop"))


@pytest.mark.parametrize("stream", [False, True])
def test_a_chain_of_responses_is_one_conversation_without_earlier_instructions(
    store: MemoryStore, stream: bool
) -> None:
    first = ask(store, instructions="Be terse.", stream=stream)
    answer = streamed(first, said(*EVERYTHING))[-1]["response"] if stream else whole(first, *EVERYTHING)
    outputs = [{"type": "function_call_output", "call_id": f"call_{i}", "output": "2"} for i in (1, 2)]
    second = whole(ask(store, previous_response_id=answer["id"], input=outputs), HELLO)
    third = ask(store, previous_response_id=second["id"], input="Bye").requests[0].prompt
    assert isinstance(third, ChatPrompt)
    assert [message["role"] for message in third.messages] == ["user", "assistant", "tool", "tool", "assistant", "user"]
    assert third.messages[1]["reasoning_content"] == "Let me add."
    assert [call["id"] for call in third.messages[1]["tool_calls"]] == ["call_1", "call_2"]
    assert third.messages[4] == {"role": "assistant", "content": "Hello"}


def test_a_chain_that_lost_its_beginning_is_refused(store: MemoryStore) -> None:
    first = whole(ask(store), HELLO)
    second = whole(ask(store, previous_response_id=first["id"]), HELLO)
    store.delete(first["id"])
    with pytest.raises(InvalidRequest, match=first["id"]):
        ask(store, previous_response_id=second["id"])


def test_nothing_is_kept_of_a_response_that_is_not_to_be_stored(store: MemoryStore) -> None:
    assert store.get(whole(ask(store, store=False), HELLO)["id"]) is None
    assert store.get(whole(ask(store), HELLO)["id"]) is not None


def test_input_items_are_listed_page_by_page(store: MemoryStore) -> None:
    items = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "d"},
        {"role": "developer", "content": [{"type": "input_text", "text": "e"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "f"}]},
    ]
    stored = store.get(whole(ask(store, input=items), HELLO)["id"])
    assert stored is not None
    listed: list[Any] = []
    query = {"order": "asc", "limit": "4"}
    while True:
        page = json.loads(item_list_body(stored, item_page(query)))
        read(ResponseItemList, page)
        listed += page["data"]
        if not page["has_more"]:
            break
        query["after"] = page["last_id"]
    assert [item["type"] for item in listed] == [
        "message", "message", "function_call", "function_call_output", "message", "reasoning"
    ]  # fmt: skip
    assert json.loads(item_list_body(stored, item_page({})))["data"] == listed[::-1]
    for bad, field in (({"limit": "x"}, "limit"), ({"limit": "0"}, "limit"), ({"odd": "1"}, "odd")):
        with pytest.raises(InvalidRequest) as caught:
            item_page(bad)
        assert caught.value.field == field
