"""POST /vertex and /invocations: the envelopes in which Vertex AI and SageMaker send what other routes take bare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from adapters.adapter import Adapter, Collected, Exchange
from adapters.openai_chat import generation_request
from adapters.openai_chat_types import ChatCompletionRequest
from adapters.raw_json import keys_of, with_model
from adapters.sse import to_json
from adapters.tgi import Plan, native_response, plan_of
from adapters.tgi_errors import native_error_body, native_error_frame, refuse_native
from adapters.tgi_types import NativeLimits, NativeModel, NativeRequest
from adapters.wire import parse_body
from engines.api import GenerationEvent, GenerationRequest
from engines.errors import HeadraceError, InvalidRequest


class VertexRequest(NativeModel):
    """Each instance is a native request, or a chat request where it has `messages`."""

    instances: Annotated[list[dict[str, Any]], Field(min_length=1, fail_fast=True)]


class Predictions(TypedDict):
    predictions: list[str]


class VertexAdapter:
    def __init__(self, limits: NativeLimits, default_model: Callable[[], str]) -> None:
        self._limits = limits
        self._default_model = default_model

    def parse(self, body: bytes, headers: Mapping[str, str], request_id: str) -> VertexExchange:  # noqa: ARG002
        instances = parse_body(VertexRequest, body).instances
        if len(instances) > self._limits.max_client_batch_size:
            limit = self._limits.max_client_batch_size
            refuse_native(f"`instances` takes at most {limit}. Given: {len(instances)}", "instances")
        return VertexExchange([self._instance(i, fields, request_id) for i, fields in enumerate(instances)])

    def _instance(self, index: int, fields: dict[str, Any], request_id: str) -> Plan | GenerationRequest:
        model = self._default_model()
        try:
            if "messages" in fields:
                chat = parse_body(ChatCompletionRequest, to_json({"model": model, **fields, "stream": False}))
                chat.check_combinations()
                return generation_request(chat, f"{request_id}-{index}")
            native = parse_body(NativeRequest, to_json(fields))
            return plan_of(
                native, f"{request_id}-{index}", limits=self._limits, model=model, stream=False, full_text=False
            )
        except InvalidRequest as error:
            raise InvalidRequest(f"instances[{index}]: {error.message}", field="instances", code=error.code) from None

    def error(self, error: HeadraceError, status: int) -> bytes:
        return native_error_body(error, status)


class VertexExchange:
    """Several prompts, each answered by its text alone."""

    stream = False

    def __init__(self, instances: Sequence[Plan | GenerationRequest]) -> None:
        self._instances = instances
        self.requests: Sequence[GenerationRequest] = [
            instance.generation if isinstance(instance, Plan) else instance for instance in instances
        ]

    def response(self, collected: Sequence[Collected]) -> bytes:
        texts = [
            native_response(instance, whole)["generated_text"] if isinstance(instance, Plan) else whole.choices[0].text
            for instance, whole in zip(self._instances, collected, strict=True)
        ]
        answer: Predictions = {"predictions": texts}
        return to_json(answer)

    def frame(self, request_index: int, event: GenerationEvent) -> bytes:  # noqa: ARG002
        return b""  # never streamed

    def end(self) -> bytes:
        return b""

    def stream_error(self, error: HeadraceError, status: int) -> bytes:  # noqa: ARG002
        return native_error_frame(error)


class InvocationsAdapter:
    """The key that a request must have says which route it is for: `inputs`, `messages` or `prompt`, in this order."""

    def __init__(self, native: Adapter, chat: Adapter, completions: Adapter) -> None:
        self._by_key: Mapping[str, Adapter] = {"inputs": native, "messages": chat, "prompt": completions}

    def parse(self, body: bytes, headers: Mapping[str, str], request_id: str) -> Exchange:
        keys = keys_of(body)
        adapter = next((adapter for key, adapter in self._by_key.items() if key in keys), self._by_key["inputs"])
        return adapter.parse(body, headers, request_id)

    def error(self, error: HeadraceError, status: int) -> bytes:
        return native_error_body(error, status)


class ModelOptional:
    """An OpenAI route whose requests need not name a model, as in TGI, which serves one."""

    def __init__(self, adapter: Adapter, default_model: Callable[[], str]) -> None:
        self._adapter = adapter
        self._default_model = default_model

    def parse(self, body: bytes, headers: Mapping[str, str], request_id: str) -> Exchange:
        return self._adapter.parse(with_model(body, self._default_model), headers, request_id)

    def error(self, error: HeadraceError, status: int) -> bytes:
        return self._adapter.error(error, status)
