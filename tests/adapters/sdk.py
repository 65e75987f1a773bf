"""Reading answers as the SDKs' own types, strictly: unlike the SDKs' clients, which take what they get.

Strictly: JSON types are not converted, everything that a type requires is there, and what we send is known to the type,
unless it stands in EXTENSIONS.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar, get_args, get_origin

import anthropic.types
from openai.types import Completion
from openai.types import Model as OpenAIModel
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel

Model = TypeVar("Model", bound=BaseModel)

EXTENSIONS: Mapping[type[BaseModel], frozenset[str]] = {
    ChatCompletion: frozenset(
        {
            "choices.stop_reason",  # this and the next three are vLLM's
            "choices.token_ids",
            "prompt_token_ids",
            "prompt_logprobs",
            "choices.message.reasoning",  # reasoning models have no place in OpenAI's type: vLLM's and DeepSeek's word
            "choices.message.reasoning_content",
        }
    ),
    ChatCompletionChunk: frozenset(
        {
            "choices.stop_reason",
            "choices.token_ids",
            "prompt_token_ids",
            "choices.delta.reasoning",
            "choices.delta.reasoning_content",
        }
    ),
    Completion: frozenset(
        {"choices.stop_reason", "choices.token_ids", "choices.prompt_token_ids", "choices.prompt_logprobs"}
    ),
    OpenAIModel: frozenset({"root", "parent", "max_model_len"}),  # vLLM's
}


def read(model: type[Model], payload: Any) -> Model:
    parsed = model.model_validate_json(json.dumps(payload), strict=True)
    unknown = set(_unknown(parsed)) - EXTENSIONS.get(model, frozenset())
    assert not unknown, f"{model.__name__} has no {sorted(unknown)}"
    return parsed


def chat_completion(payload: Any) -> ChatCompletion:
    return read(ChatCompletion, payload)


def chat_chunk(payload: Any) -> ChatCompletionChunk:
    return read(ChatCompletionChunk, payload)


def completion(payload: dict[str, Any]) -> Completion:
    """Also a chunk: the SDK has one type for both, in which finish_reason may not be null, though in streams it is."""
    choices = [{**choice, "finish_reason": choice["finish_reason"] or "stop"} for choice in payload["choices"]]
    return read(Completion, {**payload, "choices": choices})


def response(payload: Any) -> Response:
    return read(Response, payload)


def response_event(payload: Any) -> BaseModel:
    return read(_RESPONSE_EVENTS[payload["type"]], payload)


def message(payload: Any) -> anthropic.types.Message:
    return read(anthropic.types.Message, payload)


def message_event(payload: Any) -> BaseModel | None:
    """None for a ping, which Anthropic documents, and which its SDK passes over without a type."""
    if payload == {"type": "ping"}:
        return None
    return read(_MESSAGE_EVENTS[payload["type"]], payload)


def _by_type(union: Any) -> dict[str, type[BaseModel]]:
    """The arms of a union of events, by the `type` that each has."""
    if get_origin(union) is Annotated:
        union = get_args(union)[0]
    return {kind: arm for arm in get_args(union) for kind in get_args(arm.model_fields["type"].annotation)}


_RESPONSE_EVENTS = _by_type(ResponseStreamEvent)
_MESSAGE_EVENTS = _by_type(anthropic.types.RawMessageStreamEvent)


def _unknown(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, BaseModel):
        for name in value.model_extra or {}:
            yield f"{path}{name}"
        for name in type(value).model_fields:
            yield from _unknown(getattr(value, name), f"{path}{name}.")
    elif isinstance(value, list):
        for item in value:
            yield from _unknown(item, path)
