"""JSON schemas of everything that the routes take and give, for /openapi.json."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from adapters.anthropic_errors import MessagesError
from adapters.anthropic_models import ModelInfo, ModelPage
from adapters.anthropic_types import CountTokensRequest, MessageEvent, MessageObject, MessagesRequest, TokenCount
from adapters.openai_chat_types import ChatCompletion, ChatCompletionChunk, ChatCompletionRequest
from adapters.openai_completion_types import Completion, CompletionChunk, CompletionRequest
from adapters.openai_embeddings import EmbeddingList, EmbeddingsRequest
from adapters.openai_errors import ErrorBody
from adapters.openai_models import ModelList, ModelObject
from adapters.openai_responses_answer import DeletedResponse, ItemList, ResponseEvent, ResponseObject
from adapters.openai_responses_types import ResponsesRequest
from adapters.tgi_errors import NativeError
from adapters.tgi_info import Info
from adapters.tgi_tokenize import ChatTokenizeAnswer, NativeTokenSpan
from adapters.tgi_types import NativeRequest, NativeResponse, NativeStreamEvent
from adapters.tgi_vertex import Predictions, VertexRequest
from adapters.tokenize import DetokenizeAnswer, DetokenizeRequest, TokenizeAnswer, TokenizeRequest
from adapters.watermark import DetectRequest, WatermarkDetection

_REQUESTS = (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingsRequest,
    ResponsesRequest,
    MessagesRequest,
    CountTokensRequest,
    TokenizeRequest,
    DetokenizeRequest,
    DetectRequest,
    NativeRequest,
    VertexRequest,
)
_ANSWERS = (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    EmbeddingList,
    ResponseObject,
    ResponseEvent,
    DeletedResponse,
    ItemList,
    MessageObject,
    MessageEvent,
    TokenCount,
    MessagesError,
    ModelList,
    ModelObject,
    ModelPage,
    ModelInfo,
    TokenizeAnswer,
    DetokenizeAnswer,
    WatermarkDetection,
    ErrorBody,
    NativeResponse,
    NativeStreamEvent,
    NativeTokenSpan,
    ChatTokenizeAnswer,
    Predictions,
    Info,
    NativeError,
)


def openapi_schemas() -> dict[str, Any]:
    """For `components.schemas`: each wire type under its class name, and the types that they refer to."""
    inputs: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = [
        *((model.__name__, "validation", TypeAdapter(model)) for model in _REQUESTS),
        *((answer.__name__, "serialization", TypeAdapter(answer)) for answer in _ANSWERS),
    ]
    _, document = TypeAdapter.json_schemas(inputs, ref_template="#/components/schemas/{model}")
    return _with_optional_models(document["$defs"])


def _with_optional_models(schemas: dict[str, Any]) -> dict[str, Any]:
    """Adds what TGI's routes take: requests of OpenAI's that need not name a model."""
    for name in ("ChatCompletionRequest", "CompletionRequest"):
        required = [field for field in schemas[name]["required"] if field != "model"]
        schemas[f"{name}WithoutModel"] = {**schemas[name], "title": f"{name}WithoutModel", "required": required}
    kinds = [
        {"$ref": f"#/components/schemas/{name}"} for name in ("NativeRequest", "ChatCompletionRequestWithoutModel")
    ]
    vertex = schemas["VertexRequest"]
    instances = {**vertex["properties"]["instances"], "items": {"anyOf": kinds}}
    schemas["VertexRequest"] = {**vertex, "properties": {**vertex["properties"], "instances": instances}}
    return schemas
