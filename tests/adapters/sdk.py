"""Reading answers as the OpenAI SDK's own types, strictly: unlike the SDK's client, which takes what it gets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from openai import BaseModel
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

Model = TypeVar("Model", bound=BaseModel)

EXTENSIONS = {"stop_reason", "token_ids", "prompt_token_ids", "prompt_logprobs"}  # vLLM's


def read(model: type[Model], payload: dict[str, Any]) -> Model:
    parsed = model.model_validate(payload, strict=True)
    assert set(_unknown(parsed)) <= EXTENSIONS
    return parsed


def chat_completion(payload: dict[str, Any]) -> ChatCompletion:
    return read(ChatCompletion, payload)


def chat_chunk(payload: dict[str, Any]) -> ChatCompletionChunk:
    return read(ChatCompletionChunk, payload)


def completion(payload: dict[str, Any]) -> Completion:
    """Also a chunk: the SDK has one type for both, in which finish_reason may not be null, though in streams it is."""
    choices = [{**choice, "finish_reason": choice["finish_reason"] or "stop"} for choice in payload["choices"]]
    return read(Completion, {**payload, "choices": choices})


def _unknown(value: Any) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from value.model_extra or {}
        for name in type(value).model_fields:
            yield from _unknown(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            yield from _unknown(item)
