"""JSON schemas of everything that the routes take and give, for /openapi.json."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from adapters.openai_chat_types import ChatCompletion, ChatCompletionChunk, ChatCompletionRequest
from adapters.openai_completion_types import Completion, CompletionChunk, CompletionRequest
from adapters.openai_errors import ErrorBody
from adapters.openai_models import ModelList, ModelObject
from adapters.tokenize import DetokenizeAnswer, DetokenizeRequest, TokenizeAnswer, TokenizeRequest
from adapters.watermark import DetectRequest, WatermarkDetection

_REQUESTS = (ChatCompletionRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest, DetectRequest)
_ANSWERS = (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    ModelList,
    ModelObject,
    TokenizeAnswer,
    DetokenizeAnswer,
    WatermarkDetection,
    ErrorBody,
)


def openapi_schemas() -> dict[str, Any]:
    """For `components.schemas`: each wire type under its class name, and the types that they refer to."""
    inputs: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = [
        *((model.__name__, "validation", TypeAdapter(model)) for model in _REQUESTS),
        *((answer.__name__, "serialization", TypeAdapter(answer)) for answer in _ANSWERS),
    ]
    _, document = TypeAdapter.json_schemas(inputs, ref_template="#/components/schemas/{model}")
    return document["$defs"]
