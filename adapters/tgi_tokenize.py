"""POST /tokenize with an `inputs` body, and POST /chat_tokenize: tokens with the bytes of the text that each covers."""

from __future__ import annotations

from collections.abc import Callable

from typing_extensions import TypedDict

from adapters.openai_chat_types import ChatCompletionRequest
from adapters.raw_json import keys_of, with_model
from adapters.sse import to_json
from adapters.tgi_errors import refuse_native
from adapters.tgi_types import NativeRequest
from adapters.tokenize import TokenizeCall
from adapters.wire import parse_body
from engines.api import TextPrompt, Tokenized


class NativeTokenSpan(TypedDict):
    """`start` and `stop` count bytes of the text in UTF-8; both are 0 for a token that was put around it."""

    id: int
    text: str
    start: int
    stop: int


class ChatTokenizeAnswer(TypedDict):
    tokenize_response: list[NativeTokenSpan]
    templated_text: str


def is_native_tokenize(body: bytes) -> bool:
    """Whether a body of POST /tokenize is in TGI's shape; vLLM's has `prompt` or `messages`."""
    return "inputs" in keys_of(body)


def parse_native_tokenize(body: bytes) -> TokenizeCall:
    """Raises InvalidRequest naming the field. Parameters are looked at for their types alone, as in TGI."""
    request = parse_body(NativeRequest, body)
    if not request.inputs:
        refuse_native("`inputs` must not be empty", "inputs")
    return TokenizeCall(request.model, TextPrompt(request.inputs), with_texts=True)


def parse_chat_tokenize(body: bytes, default_model: Callable[[], str]) -> TokenizeCall:
    """Raises InvalidRequest naming the field."""
    request = parse_body(ChatCompletionRequest, with_model(body, default_model))
    return TokenizeCall(request.model, request.chat_prompt(request.messages), with_texts=True)


def native_tokenize_body(tokenized: Tokenized) -> bytes:
    return to_json(_spans(tokenized))


def chat_tokenize_body(tokenized: Tokenized) -> bytes:
    answer: ChatTokenizeAnswer = {"tokenize_response": _spans(tokenized), "templated_text": tokenized.text}
    return to_json(answer)


def _spans(tokenized: Tokenized) -> list[NativeTokenSpan]:
    """An engine that knows no offsets gives empty texts, as TGI does where its tokenizer knows none."""
    text = tokenized.text.encode("utf-8", "replace")
    offsets = tokenized.offsets or ((0, 0),) * len(tokenized.token_ids)
    return [
        {"id": token_id, "text": text[start:stop].decode("utf-8", "replace"), "start": start, "stop": stop}
        for token_id, (start, stop) in zip(tokenized.token_ids, offsets, strict=True)
    ]
