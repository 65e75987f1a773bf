"""The parts of an upstream's answers that we read, as msgspec structs: chat and completions, streamed and whole.

One type serves all four, because each names the same things and leaves out what it does not have. Unknown fields are
skipped without being built.
"""

from __future__ import annotations

from typing import Any

import msgspec

_ABSENT = msgspec.Raw()


class FunctionPiece(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class CallPiece(msgspec.Struct, gc=False):
    """A piece of a tool call in a stream, or a whole one, which has no index."""

    index: int | None = None
    id: str | None = None
    function: FunctionPiece | None = None


class Message(msgspec.Struct, gc=False):
    """A streamed `delta` or a whole `message`. Upstreams tell reasoning by either of its two names, or by both."""

    content: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallPiece] | None = None
    function_call: msgspec.Raw = _ABSENT

    @property
    def calls_function(self) -> bool:
        """Whether the upstream answered with OpenAI's deprecated function_call, which our events cannot carry."""
        return bytes(self.function_call) not in (b"", b"null")


class Choice(msgspec.Struct, gc=False):
    index: int = 0
    delta: Message | None = None
    message: Message | None = None
    text: str | None = None  # completions
    finish_reason: str | None = None
    stop_reason: str | int | None = None  # the stop string or token id that matched, where the upstream tells
    logprobs: msgspec.Raw = _ABSENT
    token_ids: tuple[int, ...] | None = None


class PromptTokensDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class CompletionTokensDetails(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None


class UpstreamUsage(msgspec.Struct, gc=False):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None


class Answer(msgspec.Struct, gc=False):
    """A chunk of a stream, a whole answer, or an error in either's place."""

    choices: list[Choice] = []
    usage: UpstreamUsage | None = None
    error: Any = None


class ChatTopLogprob(msgspec.Struct, gc=False):
    token: str
    logprob: float
    bytes: list[int] | None = None


class ChatTokenLogprob(msgspec.Struct, gc=False):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[ChatTopLogprob] = []


class ChatLogprobs(msgspec.Struct, gc=False):
    content: list[ChatTokenLogprob] | None = None


class CompletionLogprobs(msgspec.Struct, gc=False):
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class UpstreamModel(msgspec.Struct):
    id: str
    created: int = 0
    owned_by: str = "upstream"
    max_model_len: int | None = None


class ModelList(msgspec.Struct):
    data: list[UpstreamModel]


class EmbeddingItem(msgspec.Struct, gc=False):
    embedding: list[float] | str  # numbers, or base64 of them
    index: int = 0


class EmbeddingUsage(msgspec.Struct, gc=False):
    prompt_tokens: int = 0


class EmbeddingsAnswer(msgspec.Struct, gc=False):
    data: list[EmbeddingItem]
    usage: EmbeddingUsage | None = None


class TokenizeAnswer(msgspec.Struct):
    tokens: tuple[int, ...]
    max_model_len: int | None = None
    token_strs: tuple[str, ...] | None = None


class DetokenizeAnswer(msgspec.Struct):
    prompt: str


decode_answer = msgspec.json.Decoder(Answer).decode
decode_chat_logprobs = msgspec.json.Decoder(ChatLogprobs | None).decode
decode_completion_logprobs = msgspec.json.Decoder(CompletionLogprobs | None).decode
