"""POST /tokenize and /detokenize in vLLM's shapes: a text or a conversation to token ids, and token ids to text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from adapters.functions import MAX_TOOLS
from adapters.openai_messages import Messages, TemplateFields
from adapters.openai_tools import FunctionTool
from adapters.openai_types import TokenId
from adapters.sse import to_json
from adapters.wire import WireModel, parse_body, refuse
from engines.api import Prompt, TextPrompt, Tokenized


class TokenizeRequest(TemplateFields):
    """Exactly one of `prompt` and `messages`; the template fields belong to `messages`."""

    model: str | None = Field(default=None, min_length=1, max_length=1024)
    prompt: str | None = None
    messages: Messages | None = None
    return_token_strs: bool | None = None
    tools: list[FunctionTool] | None = Field(default=None, max_length=MAX_TOOLS)


class DetokenizeRequest(WireModel):
    model: str | None = Field(default=None, min_length=1, max_length=1024)
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


class TokenizeAnswer(TypedDict):
    count: int
    max_model_len: int | None
    tokens: tuple[int, ...]
    token_strs: tuple[str, ...] | None


class DetokenizeAnswer(TypedDict):
    prompt: str


@dataclass(frozen=True, slots=True)
class TokenizeCall:
    """`model` is None where the client named none: the gateway's only or first model."""

    model: str | None
    prompt: Prompt
    with_texts: bool


@dataclass(frozen=True, slots=True)
class DetokenizeCall:
    model: str | None
    token_ids: tuple[int, ...]


def parse_tokenize(body: bytes) -> TokenizeCall:
    """Raises InvalidRequest naming the field."""
    request = parse_body(TokenizeRequest, body)
    return TokenizeCall(request.model, _prompt(request), bool(request.return_token_strs))


def parse_detokenize(body: bytes) -> DetokenizeCall:
    """Raises InvalidRequest naming the field."""
    request = parse_body(DetokenizeRequest, body)
    return DetokenizeCall(request.model, tuple(request.tokens))


def _prompt(request: TokenizeRequest) -> Prompt:
    if request.messages is not None:
        if request.prompt is not None:
            refuse("messages", "cannot be sent together with prompt")
        tools = tuple(tool.model_dump(exclude_none=True) for tool in request.tools or ())
        return request.chat_prompt(request.messages, tools=tools)
    if request.prompt is None:
        refuse("prompt", "this field is required, or messages in its place", code="missing_required_parameter")
    for name in (
        "add_generation_prompt",
        "continue_final_message",
        "chat_template_kwargs",
        "documents",
        "chat_template",
        "tools",
    ):
        if getattr(request, name):
            refuse(name, "only allowed with messages")
    return TextPrompt(request.prompt, request.add_special_tokens is not False)


def tokenize_body(tokenized: Tokenized, *, with_texts: bool) -> bytes:
    answer: TokenizeAnswer = {
        "count": len(tokenized.token_ids),
        "max_model_len": tokenized.max_model_len,
        "tokens": tokenized.token_ids,
        "token_strs": tokenized.token_texts if with_texts else None,
    }
    return to_json(answer)


def detokenize_body(text: str) -> bytes:
    answer: DetokenizeAnswer = {"prompt": text}
    return to_json(answer)
