"""Conversations on the wire: OpenAI's messages, and what a client may tell the model's chat template beside them.

Messages are typed dicts, so that a validated conversation is at once what `ChatPrompt` holds. Which fields a request
has beside its conversation is not known here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NotRequired, cast

from pydantic import BeforeValidator, Discriminator, Field, Tag, with_config
from typing_extensions import TypedDict

from adapters.wire import WIRE_CONFIG, NoEffect, Refused, WireModel, refuse, tagged
from engines.api import ChatPrompt

# --- messages ---------------------------------------------------------------------------------------------------------


@with_config(WIRE_CONFIG)
class TextPart(TypedDict):
    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: NotRequired[
        Annotated[dict[str, Any] | None, NoEffect("prefixes are cached wherever they recur; no mark is needed.")]
    ]
    cache_control: NotRequired[  # Anthropic's, which clients of several providers leave in
        Annotated[dict[str, Any] | None, NoEffect("prefixes are cached wherever they recur; no mark is needed.")]
    ]


def _content_kind(value: object) -> str | None:
    return tagged("string") if isinstance(value, str) else tagged("parts") if isinstance(value, list) else None


Content = Annotated[
    Annotated[str, Tag(tagged("string"))]
    | Annotated[list[TextPart], Field(min_length=1, fail_fast=True), Tag(tagged("parts"))],
    Discriminator(
        _content_kind,
        custom_error_type="content_type",
        custom_error_message="must be a string or an array of content parts",
    ),
]


NoCalls = Annotated[Any, Refused("only an assistant's message calls tools", ([],))]  # some clients send a null


@with_config(WIRE_CONFIG)
class SystemMessage(TypedDict):
    role: Literal["system"]
    content: Content
    name: NotRequired[str | None]
    tool_calls: NotRequired[NoCalls]


@with_config(WIRE_CONFIG)
class DeveloperMessage(TypedDict):
    role: Literal["developer"]
    content: Content
    name: NotRequired[str | None]
    tool_calls: NotRequired[NoCalls]


@with_config(WIRE_CONFIG)
class UserMessage(TypedDict):
    role: Literal["user"]
    content: Content
    name: NotRequired[str | None]
    tool_calls: NotRequired[NoCalls]


@with_config(WIRE_CONFIG)
class CalledFunction(TypedDict):
    name: str
    arguments: str  # JSON as the model wrote it, which may not be valid


def _called(value: object) -> object:
    """TGI's shapes of a called function as OpenAI's: arguments as an object, `parameters` for them, a description."""
    if not isinstance(value, dict):
        return value
    function = cast("dict[str, Any]", value)
    if function.keys() <= {"name", "arguments"} and isinstance(function.get("arguments"), str):
        return function
    plain = {name: member for name, member in function.items() if name not in ("description", "parameters")}
    arguments = function.get("arguments", function.get("parameters"))
    if arguments is not None:
        plain["arguments"] = json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else arguments
    return plain


@with_config(WIRE_CONFIG)
class ToolCall(TypedDict):
    id: str
    type: Literal["function"]
    function: Annotated[CalledFunction, BeforeValidator(_called)]


@with_config(WIRE_CONFIG)
class AssistantMessage(TypedDict):
    """Clients send back what they were answered, nulls included, so every field of an answer's message stands here."""

    role: Literal["assistant"]
    content: NotRequired[Content | None]
    name: NotRequired[str | None]
    tool_calls: NotRequired[Annotated[list[ToolCall], Field(fail_fast=True)] | None]
    reasoning_content: NotRequired[str | None]
    reasoning: NotRequired[str | None]
    refusal: NotRequired[Annotated[Any, Refused("send the refusal's text as content")]]
    audio: NotRequired[Annotated[Any, Refused("audio is not supported")]]
    function_call: NotRequired[Annotated[Any, Refused("deprecated; send tool_calls")]]
    annotations: NotRequired[Annotated[Any, Refused("annotations are not supported", ([],))]]


@with_config(WIRE_CONFIG)
class ToolMessage(TypedDict):
    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: NotRequired[str | None]


@with_config(WIRE_CONFIG)
class FunctionMessage(TypedDict):
    role: Literal["function"]
    content: Content | None
    name: str


Message = Annotated[
    SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage,
    Field(discriminator="role"),
]
Messages = Annotated[list[Message], Field(min_length=1, max_length=16384, fail_fast=True)]


def plain_message(message: Message) -> dict[str, Any]:
    """The message as `ChatPrompt` holds it: nulls and marks for caches left out, reasoning under one name."""
    plain: dict[str, Any] = {name: value for name, value in message.items() if value is not None}
    content = plain.get("content")
    if isinstance(content, list):
        plain["content"] = [{"type": "text", "text": part["text"]} for part in cast(list[TextPart], content)]
    if not plain.get("tool_calls"):
        plain.pop("tool_calls", None)
    if "reasoning" in plain:
        plain.setdefault("reasoning_content", plain.pop("reasoning"))
    return plain


def check_messages(messages: Sequence[Message]) -> None:
    """Raises InvalidRequest for a message that says nothing."""
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and not message.get("tool_calls") and message.get("content") is None:
            path = f"messages[{index}].content"
            refuse(path, "this field is required unless tool_calls are given", code="missing_required_parameter")


# --- the chat template ------------------------------------------------------------------------------------------------


class TemplateFields(WireModel):
    """What goes to the chat template with the messages, as vLLM names it."""

    arm_positions: ClassVar[Mapping[str, int]] = {"messages": 2}

    add_generation_prompt: bool | None = None  # default: true, unless the final message is to be continued
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: Annotated[list[dict[str, Any]], Field(max_length=4096)] | None = None
    chat_template: str | None = Field(default=None, min_length=1, max_length=2**20)  # which the engine may refuse
    add_special_tokens: bool | None = None  # default: false, for templates write them

    def chat_prompt(
        self,
        messages: Sequence[Message],
        more_kwargs: Mapping[str, Any] | None = None,
        tools: tuple[Mapping[str, Any], ...] = (),
    ) -> ChatPrompt:
        """Raises InvalidRequest. `more_kwargs` yield to what the client says in chat_template_kwargs."""
        check_messages(messages)
        continues = bool(self.continue_final_message)
        if self.add_generation_prompt and continues:
            refuse("continue_final_message", "cannot be true together with add_generation_prompt")
        return ChatPrompt(
            messages=tuple(plain_message(message) for message in messages),
            tools=tools or None,
            add_generation_prompt=not continues if self.add_generation_prompt is None else self.add_generation_prompt,
            continue_final_message=continues,
            add_special_tokens=bool(self.add_special_tokens),
            template=self.chat_template,
            template_kwargs={**(more_kwargs or {}), **self._documents(), **(self.chat_template_kwargs or {})},
        )

    def _documents(self) -> dict[str, Any]:
        return {} if self.documents is None else {"documents": self.documents}
