"""Items of the Responses API that clients send: messages, calls, their outputs, reasoning. And items as messages.

What an answer says comes back as input, so every item of an answer is one that may be sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NotRequired, TypeAlias, cast

from pydantic import Discriminator, Field, Tag, WithJsonSchema, with_config
from typing_extensions import TypedDict

from adapters.wire import WIRE_CONFIG, NoEffect, Refused, by_type, refused_type, tagged

MAX_ITEMS = 16384
_STATUS = NoEffect("items are taken as they are, whatever became of them.")
_ItemStatus = Annotated[Literal["in_progress", "completed", "incomplete"] | None, _STATUS]
_NO_CALLERS = "programs that call tools are not supported"

# --- content ----------------------------------------------------------------------------------------------------------


@with_config(WIRE_CONFIG)
class InputText(TypedDict):
    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: NotRequired[
        Annotated[Any, NoEffect("prefixes are cached wherever they recur; no mark is needed.")]
    ]


@with_config(WIRE_CONFIG)
class OutputText(TypedDict):
    type: Literal["output_text"]
    text: str
    annotations: NotRequired[Annotated[Any, Refused("annotations are not supported", ([],))]]
    logprobs: NotRequired[Annotated[Any, NoEffect("log-probabilities of earlier answers have no say.")]]


@with_config(WIRE_CONFIG)
class Refusal(TypedDict):
    type: Literal["refusal"]
    refusal: str


@with_config({"extra": "ignore"})
class UnknownPart(TypedDict):
    type: Annotated[str, refused_type("input_text", "output_text", "refusal")]


Part: TypeAlias = InputText | OutputText | Refusal
_AnyPart = Annotated[
    Annotated[InputText, Tag(tagged("input_text"))]
    | Annotated[OutputText, Tag(tagged("output_text"))]
    | Annotated[Refusal, Tag(tagged("refusal"))]
    | Annotated[UnknownPart, Tag(tagged("other")), WithJsonSchema({"not": {}})],
    by_type("input_text", "output_text", "refusal"),
]


def _string_or_list(value: object) -> str | None:
    return tagged("string") if isinstance(value, str) else tagged("parts") if isinstance(value, list) else None


Content = Annotated[
    Annotated[str, Tag(tagged("string"))]
    | Annotated[list[_AnyPart], Field(max_length=MAX_ITEMS, fail_fast=True), Tag(tagged("parts"))],
    Discriminator(
        _string_or_list,
        custom_error_type="content_type",
        custom_error_message="must be a string or an array of content parts",
    ),
]

# --- items ------------------------------------------------------------------------------------------------------------


@with_config(WIRE_CONFIG)
class MessageItem(TypedDict):
    """The one item whose type may be left out."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    type: NotRequired[Literal["message"]]
    id: NotRequired[str | None]
    status: NotRequired[_ItemStatus]
    phase: NotRequired[Annotated[str | None, NoEffect("tells OpenAI's own models commentary from answers.")]]


@with_config(WIRE_CONFIG)
class FunctionCallItem(TypedDict):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str  # JSON as the model wrote it, which may not be valid
    id: NotRequired[str | None]
    status: NotRequired[_ItemStatus]
    namespace: NotRequired[Annotated[Any, Refused("namespaces of tools are not supported")]]
    caller: NotRequired[Annotated[Any, Refused(_NO_CALLERS, ({"type": "direct"},))]]


@with_config(WIRE_CONFIG)
class FunctionOutputItem(TypedDict):
    type: Literal["function_call_output"]
    call_id: str
    output: Content
    id: NotRequired[str | None]
    name: NotRequired[str | None]
    status: NotRequired[_ItemStatus]
    namespace: NotRequired[Annotated[Any, Refused("namespaces of tools are not supported")]]
    caller: NotRequired[Annotated[Any, Refused(_NO_CALLERS, ({"type": "direct"},))]]


@with_config(WIRE_CONFIG)
class ReasoningText(TypedDict):
    type: Literal["reasoning_text"]
    text: str


@with_config(WIRE_CONFIG)
class SummaryText(TypedDict):
    type: Literal["summary_text"]
    text: str


@with_config(WIRE_CONFIG)
class ReasoningItem(TypedDict):
    """Its content is what the model thought; a summary stands for it where there is no content."""

    type: Literal["reasoning"]
    id: NotRequired[str | None]
    summary: NotRequired[Annotated[list[SummaryText], Field(fail_fast=True)]]
    content: NotRequired[Annotated[list[ReasoningText], Field(fail_fast=True)] | None]
    encrypted_content: NotRequired[Annotated[Any, Refused("only OpenAI can read it; send the item's content")]]
    status: NotRequired[_ItemStatus]


@with_config({"extra": "ignore"})
class UnknownItem(TypedDict):
    type: Annotated[str, refused_type("message", "function_call", "function_call_output", "reasoning")]


Item: TypeAlias = MessageItem | FunctionCallItem | FunctionOutputItem | ReasoningItem
AnyItem = Annotated[
    Annotated[MessageItem, Tag(tagged("message"))]
    | Annotated[FunctionCallItem, Tag(tagged("function_call"))]
    | Annotated[FunctionOutputItem, Tag(tagged("function_call_output"))]
    | Annotated[ReasoningItem, Tag(tagged("reasoning"))]
    | Annotated[UnknownItem, Tag(tagged("other")), WithJsonSchema({"not": {}})],
    by_type("message", "function_call", "function_call_output", "reasoning", otherwise="message"),
]
Items = Annotated[list[AnyItem], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]
Input = Annotated[
    Annotated[str, Tag(tagged("string"))] | Annotated[Items, Tag(tagged("parts"))],
    Discriminator(
        _string_or_list,
        custom_error_type="input_type",
        custom_error_message="must be a string or an array of items",
    ),
]


def given_items(given: Input) -> list[Item]:
    """What was sent as a validated `Input`; a text is what the user says."""
    return [{"role": "user", "content": given}] if isinstance(given, str) else cast(list[Item], given)


# --- as messages ------------------------------------------------------------------------------------------------------


def as_messages(items: Sequence[Item]) -> list[dict[str, Any]]:
    """As `ChatPrompt` holds them. What the assistant did in a row (think, speak, call) is one message."""
    messages: list[dict[str, Any]] = []
    turn: dict[str, Any] | None = None  # the assistant's, while it goes on
    for item in items:
        if "type" not in item or item["type"] == "message":
            if item["role"] != "assistant":
                turn = None
                messages.append({"role": item["role"], "content": _content(item["content"])})
                continue
            turn = _turn(messages, turn, "content")
            turn["content"] = _content(item["content"])
        elif item["type"] == "function_call_output":
            turn = None
            messages.append({"role": "tool", "content": _content(item["output"]), "tool_call_id": item["call_id"]})
        elif item["type"] == "reasoning":
            turn = _turn(messages, turn, "reasoning_content")
            turn["reasoning_content"] = _thought(item)
        else:
            turn = turn if turn is not None else _turn(messages, None, "tool_calls")
            function = {"name": item["name"], "arguments": item["arguments"]}
            turn.setdefault("tool_calls", []).append({"id": item["call_id"], "type": "function", "function": function})
    for message in messages:
        if "content" not in message and "tool_calls" not in message:
            message["content"] = ""  # it was cut while it thought
    return messages


_ORDER = ("reasoning_content", "content", "tool_calls")


def _turn(messages: list[dict[str, Any]], turn: dict[str, Any] | None, part: str) -> dict[str, Any]:
    """The assistant's message that `part` goes into: a new one where the turn has come as far as that already."""
    if turn is None or any(name in turn for name in _ORDER[_ORDER.index(part) :]):
        turn = {"role": "assistant"}
        messages.append(turn)
    return turn


def _content(content: str | Sequence[Any]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    texts = [_text(part) for part in cast(Sequence[Part], content)]
    return [{"type": "text", "text": text} for text in texts] if len(texts) > 1 else "".join(texts)


def _text(part: Part) -> str:
    return part["refusal"] if part["type"] == "refusal" else part["text"]


def _thought(item: ReasoningItem) -> str:
    parts: Sequence[ReasoningText | SummaryText] = item.get("content") or item.get("summary", ())
    return "".join(part["text"] for part in parts)
