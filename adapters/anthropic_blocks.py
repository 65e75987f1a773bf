"""Conversations of the Messages API: messages made of blocks, as clients send them. And blocks as chat messages.

What an answer says comes back as input, so every block of an answer is one that may be sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired, TypeAlias, cast

from pydantic import Discriminator, Field, Tag, WithJsonSchema, with_config
from typing_extensions import TypedDict

from adapters.wire import WIRE_CONFIG, NoEffect, Refused, by_type, refuse, refused_type, tagged

MAX_MESSAGES = 100_000  # Anthropic's limit
CacheControl = Annotated[Any, NoEffect("prefixes are cached wherever they recur; no mark is needed.")]
_Citations = Annotated[Any, Refused("citations are not supported", ([],))]
_NO_TOOLSETS = "toolsets are not supported"

# --- blocks -----------------------------------------------------------------------------------------------------------


@with_config(WIRE_CONFIG)
class TextBlock(TypedDict):
    type: Literal["text"]
    text: str
    cache_control: NotRequired[CacheControl]
    citations: NotRequired[_Citations]


@with_config(WIRE_CONFIG)
class ThinkingBlock(TypedDict):
    type: Literal["thinking"]
    thinking: str
    signature: NotRequired[Annotated[str, NoEffect("thinking is not signed here, so there is nothing to check.")]]


@with_config(WIRE_CONFIG)
class ToolUseBlock(TypedDict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    cache_control: NotRequired[CacheControl]
    caller: NotRequired[Annotated[Any, Refused("programs that call tools are not supported", ({"type": "direct"},))]]
    toolset_name: NotRequired[Annotated[Any, Refused(_NO_TOOLSETS)]]


@with_config({"extra": "ignore"})
class UnknownResult(TypedDict):
    type: Annotated[str, refused_type("text")]


ResultBlock = Annotated[
    Annotated[TextBlock, Tag(tagged("text"))]
    | Annotated[UnknownResult, Tag(tagged("other")), WithJsonSchema({"not": {}})],
    by_type("text"),
]


def _string_or_list(value: object) -> str | None:
    return tagged("string") if isinstance(value, str) else tagged("blocks") if isinstance(value, list) else None


_STRING_OR_BLOCKS = Discriminator(
    _string_or_list,
    custom_error_type="content_type",
    custom_error_message="must be a string or an array of content blocks",
)
Texts = Annotated[
    Annotated[str, Tag(tagged("string"))] | Annotated[list[ResultBlock], Field(fail_fast=True), Tag(tagged("blocks"))],
    _STRING_OR_BLOCKS,
]


@with_config(WIRE_CONFIG)
class ToolResultBlock(TypedDict):
    type: Literal["tool_result"]
    tool_use_id: str
    content: NotRequired[Texts]
    is_error: NotRequired[bool | None]
    cache_control: NotRequired[CacheControl]
    toolset_name: NotRequired[Annotated[Any, Refused(_NO_TOOLSETS)]]


@with_config({"extra": "ignore"})
class UnknownBlock(TypedDict):
    type: Annotated[str, refused_type("text", "thinking", "tool_use", "tool_result")]


Block: TypeAlias = TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock
_AnyBlock = Annotated[
    Annotated[TextBlock, Tag(tagged("text"))]
    | Annotated[ThinkingBlock, Tag(tagged("thinking"))]
    | Annotated[ToolUseBlock, Tag(tagged("tool_use"))]
    | Annotated[ToolResultBlock, Tag(tagged("tool_result"))]
    | Annotated[UnknownBlock, Tag(tagged("other")), WithJsonSchema({"not": {}})],
    by_type("text", "thinking", "tool_use", "tool_result"),
]
Content = Annotated[
    Annotated[str, Tag(tagged("string"))] | Annotated[list[_AnyBlock], Field(fail_fast=True), Tag(tagged("blocks"))],
    _STRING_OR_BLOCKS,
]


@with_config(WIRE_CONFIG)
class Message(TypedDict):
    role: Literal["user", "assistant", "system"]
    content: Content


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]

# --- as chat messages -------------------------------------------------------------------------------------------------

_BLOCKS_OF = {"user": {"text", "tool_result"}, "assistant": {"text", "thinking", "tool_use"}, "system": {"text"}}


def as_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """As `ChatPrompt` holds them. Raises InvalidRequest for a block that is not its role's to say."""
    chat: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if isinstance(content, str):
            chat.append({"role": role, "content": content})
            continue
        blocks = cast(Sequence[Block], content)
        for place, block in enumerate(blocks):
            if block["type"] not in _BLOCKS_OF[role]:
                field = f"messages[{index}].content[{place}].type"
                refuse(field, f"a message of role '{role}' has no blocks of type '{block['type']}'")
        chat += [_assistant_message(blocks)] if role == "assistant" else _user_messages(role, blocks)
    return chat


def _assistant_message(blocks: Sequence[Block]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant"}
    thoughts = [block["thinking"] for block in blocks if block["type"] == "thinking"]
    calls = [_call(block) for block in blocks if block["type"] == "tool_use"]
    texts = [block["text"] for block in blocks if block["type"] == "text"]
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if texts or not calls:
        message["content"] = _content(texts)
    if calls:
        message["tool_calls"] = calls
    return message


def _call(block: ToolUseBlock) -> dict[str, Any]:
    arguments = json.dumps(block["input"], ensure_ascii=False)
    return {"id": block["id"], "type": "function", "function": {"name": block["name"], "arguments": arguments}}


def _user_messages(role: str, blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """What tools gave back are messages of their own, in order with what the user says around them."""
    messages: list[dict[str, Any]] = []
    texts: list[str] = []

    def say() -> None:
        if texts or not blocks:  # no blocks at all are an empty message
            messages.append({"role": role, "content": _content(texts)})
            texts.clear()

    for block in blocks:
        if block["type"] == "text":
            texts.append(block["text"])
        elif block["type"] == "tool_result":
            say()
            messages.append({"role": "tool", "content": _result(block), "tool_call_id": block["tool_use_id"]})
    say()
    return messages


def _result(block: ToolResultBlock) -> str | list[dict[str, Any]]:
    """Chat messages cannot mark a failure, so a failed tool's text says it."""
    texts = texts_of(block.get("content", ""))
    return _content(["Error: ", *texts] if block.get("is_error") else texts, joined=bool(block.get("is_error")))


def texts_of(content: str | Sequence[Any]) -> list[str]:
    """Of a validated `Texts`."""
    return [content] if isinstance(content, str) else [block["text"] for block in cast(Sequence[TextBlock], content)]


def _content(texts: Sequence[str], *, joined: bool = False) -> str | list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts] if len(texts) > 1 and not joined else "".join(texts)


def system_message(system: str | Sequence[Any]) -> Mapping[str, Any]:
    return {"role": "system", "content": _content(texts_of(system))}
