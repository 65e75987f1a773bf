"""POST /v1/responses: from its JSON to one GenerationRequest, and from events to its answer or its stream.

An answer is kept in the store unless the client says otherwise, so that a later request can go on from it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from adapters.adapter import Collected
from adapters.blocks import Blocks
from adapters.openai_errors import error_body
from adapters.openai_responses_answer import ItemStatus, ResponseFailure, ResponseObject, ResponseUsage
from adapters.openai_responses_items import Item, as_messages, given_items
from adapters.openai_responses_store import ResponseStore, StoredResponse, conversation, items_to_keep
from adapters.openai_responses_stream import EventStream, Items
from adapters.openai_responses_types import NO_EFFECT_FIELDS, ResponsesRequest
from adapters.openai_types import budget_of, forwarded_fields, kept, sampling_params
from adapters.sse import to_json
from adapters.wire import clip, parse_body
from engines.api import ChatPrompt, Done, GenerationEvent, GenerationRequest, Started, TextDelta, Usage
from engines.errors import GenerationFailed, HeadraceError, InvalidRequest, Overloaded

MAX_ERROR_CHARS = 2000


class ResponsesAdapter:
    """`store` is where answers are kept."""

    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    def parse(self, body: bytes, headers: Mapping[str, str], request_id: str) -> ResponsesExchange:  # noqa: ARG002
        request = parse_body(ResponsesRequest, body)
        request.check_combinations()
        items = given_items(request.input)
        earlier = conversation(self._store, request.previous_response_id)
        generation = _generation_request(request, [*earlier, *items], request_id)
        store = None if request.store is False else self._store
        return ResponsesExchange(request, generation, items, store)

    def error(self, error: HeadraceError, status: int) -> bytes:
        return error_body(_in_own_words(error), status)


def _generation_request(request: ResponsesRequest, items: Sequence[Item], request_id: str) -> GenerationRequest:
    messages = as_messages(items)
    if request.instructions is not None:
        messages.insert(0, {"role": "system", "content": request.instructions})
    effort = request.reasoning.template_kwargs() if request.reasoning else {}
    return GenerationRequest(
        request_id=request_id,
        model=request.model,
        prompt=ChatPrompt(
            messages=tuple(messages),
            tools=request.offered_tools(),
            template_kwargs={**effort, **(request.chat_template_kwargs or {})},
        ),
        sampling=sampling_params(
            request,
            max_tokens=request.max_output_tokens,
            logprobs=(request.top_logprobs or 0) if request.tells_logprobs else None,
        ),
        structured_output=request.structured_output(),
        tool_choice=request.chosen(),
        thinking_budget=budget_of(request.thinking_token_budget),
        stream=bool(request.stream),
        **kept(request),
        forwarded=_forwarded(request),
    )


def _forwarded(request: ResponsesRequest) -> dict[str, Any]:
    """What an upstream may want to know, by the names that its chat completions have for it."""
    fields = forwarded_fields(request, [name for name in NO_EFFECT_FIELDS if name != "max_tool_calls"])
    if request.reasoning is not None and request.reasoning.effort is not None:
        fields["reasoning_effort"] = request.reasoning.effort
    return fields


_OWN_NAMES = {"messages": "input", "max_tokens": "max_output_tokens", "logprobs": "include"}


def _in_own_words(error: HeadraceError) -> HeadraceError:
    """Engines speak of fields by the names that chat completions have for them."""
    if not isinstance(error, InvalidRequest) or error.field not in _OWN_NAMES:
        return error
    field = _OWN_NAMES[error.field]
    return InvalidRequest(error.message.replace(error.field, field), field=field, code=error.code)


class ResponsesExchange:
    """One request and the words for its answer. A single GenerationRequest, so `request_index` is always 0."""

    def __init__(
        self,
        request: ResponsesRequest,
        generation: GenerationRequest,
        items: Sequence[Item],
        store: ResponseStore | None,
    ) -> None:
        self.requests: Sequence[GenerationRequest] = (generation,)
        self.stream = bool(request.stream)
        self._request = request
        self._given = items
        self._store = store
        self._suffix = secrets.token_hex(24)  # whoever knows a response's id may read it, so it cannot be guessed
        self._created_at = int(time.time())
        self._items = Items(self._suffix, request.top_logprobs or 0)
        self._blocks = Blocks()  # of a stream, so far
        self._events = EventStream(self._items)

    # --- streamed -----------------------------------------------------------------------------------------------------

    def frame(self, request_index: int, event: GenerationEvent) -> bytes:  # noqa: ARG002
        if isinstance(event, TextDelta):
            is_last = event.finish is not None
            steps = b"".join(self._events.step(step, "completed") for step in self._blocks.add(event))
            return steps + self._close() if is_last else steps
        if isinstance(event, Started):
            begun = self._response("in_progress")
            return self._events.state("created", begun) + self._events.state("in_progress", begun)
        return self._ended(event)

    def _close(self) -> bytes:
        status = self._last_status(self._blocks)
        return b"".join(self._events.step(step, status) for step in self._blocks.end())

    def _ended(self, event: Done) -> bytes:
        if self._was_aborted(self._blocks):
            return self.stream_error(GenerationFailed("The generation was aborted."), 500)
        response = self._whole(self._blocks, event.usage)
        return self._events.state(response["status"], self._kept(response))

    def end(self) -> bytes:
        return b""

    def stream_error(self, error: HeadraceError, status: int) -> bytes:  # noqa: ARG002
        response = self._response("failed")
        response["output"] = [self._items.item(block, "incomplete") for block in self._blocks.all]
        response["error"] = _failure(_in_own_words(error))
        return self._events.state("failed", self._kept(response))

    # --- whole --------------------------------------------------------------------------------------------------------

    def response(self, collected: Sequence[Collected]) -> bytes:
        """Raises GenerationFailed for an answer that the engine gave up."""
        (whole,) = collected
        blocks = Blocks.of(whole.choices[0].deltas)
        if self._was_aborted(blocks):
            raise GenerationFailed("The generation was aborted.")
        return to_json(self._kept(self._whole(blocks, whole.usage)))

    def _whole(self, blocks: Blocks, usage: Usage) -> ResponseObject:
        last = self._last_status(blocks)
        response = self._response("completed" if last == "completed" else "incomplete")
        if last == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        response["output"] = [
            self._items.item(block, last if block is blocks.all[-1] else "completed") for block in blocks.all
        ]
        response["usage"] = _usage(usage)
        response["completed_at"] = int(time.time())
        return response

    def _kept(self, response: ResponseObject) -> ResponseObject:
        if self._store is not None:
            given = items_to_keep(self._given, self._suffix)
            previous = self._request.previous_response_id
            self._store.put(StoredResponse(response["id"], previous, to_json(response), to_json(given)))
        return response

    @staticmethod
    def _last_status(blocks: Blocks) -> ItemStatus:
        return "incomplete" if blocks.finish is not None and blocks.finish.reason == "length" else "completed"

    @staticmethod
    def _was_aborted(blocks: Blocks) -> bool:
        return blocks.finish is None or blocks.finish.reason == "abort"

    def _response(self, status: Any) -> ResponseObject:
        request = self._request
        return {
            "id": f"resp_{self._suffix}",
            "object": "response",
            "created_at": self._created_at,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": request.model,
            "output": [],
            "usage": None,
            "background": False,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": request.max_tool_calls,
            "metadata": request.metadata or {},
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": request.previous_response_id,
            "reasoning": {"effort": request.reasoning.effort, "summary": None} if request.reasoning else None,
            "service_tier": "default",
            "temperature": request.temperature,
            "text": _text_config(request),
            "tool_choice": _dumped(request.tool_choice) if request.tool_choice else "auto",
            "tools": [{"parameters": None, "strict": None, **_dumped(tool)} for tool in request.tools or ()],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": request.top_p,
            "truncation": "disabled",
            "user": request.user,
        }


def _text_config(request: ResponsesRequest) -> dict[str, Any]:
    form = request.text.format if request.text else None
    return {"format": {"type": "text"} if form is None else _dumped(form), "verbosity": "medium"}


def _dumped(model: Any) -> Any:
    return model if isinstance(model, str) else model.model_dump(exclude_none=True, by_alias=True)


def _usage(usage: Usage) -> ResponseUsage:
    """Writing to the prefix cache costs nothing here, so no token is counted as written."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _failure(error: HeadraceError) -> ResponseFailure:
    """OpenAI has few words for what may go wrong after the first byte."""
    code = "invalid_prompt" if isinstance(error, InvalidRequest) else "server_error"
    if isinstance(error, Overloaded):
        code = "rate_limit_exceeded"
    return {"code": code, "message": clip(error.message, MAX_ERROR_CHARS)}
