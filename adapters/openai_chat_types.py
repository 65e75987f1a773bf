"""The wire models of POST /v1/chat/completions: its request and its answers.

Every field of OpenAI's request type stands here: as a field that is honoured, marked `NoEffect`, or marked `Refused`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from adapters.openai_logprobs import ChatLogprobs, PromptLogprobs
from adapters.openai_messages import Messages, TemplateFields
from adapters.openai_structured import ARM_POSITIONS, StructuredFields
from adapters.openai_tools import AnsweredCall, CallPiece, ToolFields
from adapters.openai_types import (
    MAX_LOGPROBS,
    MAX_TOKENS,
    FinishWord,
    GenerationFields,
    PlatformFields,
    UsageObject,
    no_effect_fields,
)
from adapters.wire import NoEffect, Refused, refuse

# --- the request ------------------------------------------------------------------------------------------------------

_NO_FUNCTIONS = "deprecated; send tools"


class ChatCompletionRequest(GenerationFields, StructuredFields, ToolFields, TemplateFields, PlatformFields):
    """POST /v1/chat/completions."""

    arm_positions: ClassVar[Mapping[str, int]] = {**TemplateFields.arm_positions, **ARM_POSITIONS}

    messages: Messages
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    thinking_token_budget: int | None = Field(default=None, ge=-1, le=MAX_TOKENS)  # beyond OpenAI; -1: no limit
    return_prompt_text: bool | None = None  # beyond OpenAI
    include_reasoning: bool | None = None  # beyond OpenAI; false leaves reasoning out of the answer

    metadata: Annotated[dict[str, Any] | None, NoEffect("labels for OpenAI's dashboard.")] = None
    store: Annotated[bool | None, NoEffect("asks OpenAI to keep the answer; answers are not kept here.")] = None
    best_of: Annotated[Any, Refused("only /v1/completions ranks its choices", (1,))] = None
    echo: Annotated[Any, Refused("the text that an answer goes on from is not repeated", (False,))] = None
    tool_prompt: Annotated[str | None, NoEffect("TGI's wording of tools; the chat template has its own.")] = None

    functions: Annotated[Any, Refused(_NO_FUNCTIONS, ([],))] = None
    function_call: Annotated[Any, Refused(_NO_FUNCTIONS, ("none", "auto"))] = None
    modalities: Annotated[Any, Refused('only ["text"] is supported', (["text"],))] = None
    audio: Annotated[Any, Refused("audio output is not supported")] = None
    prediction: Annotated[Any, Refused("predicted output is not supported")] = None
    web_search_options: Annotated[Any, Refused("web search is not supported")] = None
    moderation: Annotated[Any, Refused("moderation is not supported")] = None
    verbosity: Annotated[Any, Refused('only "medium", the default, is supported', ("medium",))] = None

    @property
    def tells_prompt(self) -> bool:
        return bool(self.return_token_ids or self.return_prompt_text) or self.prompt_logprobs is not None

    def check_combinations(self) -> None:
        super().check_combinations()
        if self.top_logprobs and not self.logprobs:
            refuse("top_logprobs", "only allowed when logprobs is true")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            refuse("max_completion_tokens", "differs from max_tokens, which it replaces; send one of them")


NO_EFFECT_FIELDS: Mapping[str, str] = no_effect_fields(ChatCompletionRequest)
"""Fields of a chat request that our own engines accept without effect, with the reason for each."""

# --- the answers ------------------------------------------------------------------------------------------------------


class AnswerMessage(TypedDict):
    """`content` is null in an answer of tool calls alone. Reasoning is told under both names that clients read."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[AnsweredCall]]
    reasoning: NotRequired[str]
    reasoning_content: NotRequired[str]


class ChatChoice(TypedDict):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishWord
    stop_reason: str | int | None
    token_ids: NotRequired[list[int]]


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: UsageObject
    prompt_token_ids: NotRequired[list[int]]
    prompt_text: NotRequired[str]
    prompt_logprobs: NotRequired[PromptLogprobs]


class Delta(TypedDict, total=False):
    role: Literal["assistant"]
    content: str
    tool_calls: list[CallPiece]
    reasoning: str
    reasoning_content: str


class ChatChunkChoice(TypedDict):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishWord | None
    stop_reason: NotRequired[str | int | None]
    token_ids: NotRequired[list[int]]


class ChatCompletionChunk(TypedDict):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[UsageObject | None]
    prompt_token_ids: NotRequired[list[int]]
    prompt_text: NotRequired[str]
