"""POST /v1/chat/completions: from its JSON to one GenerationRequest, and from events to its answer or its stream."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from adapters.adapter import Collected, CollectedChoice
from adapters.openai_chat_types import (
    NO_EFFECT_FIELDS,
    AnswerMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionRequest,
)
from adapters.openai_errors import error_body
from adapters.openai_logprobs import ChatLogprobs, chat_logprobs, named_by_id, prompt_logprobs
from adapters.openai_stream import ChunkExtras, ChunkShape, ChunkStream, stream_error_frames
from adapters.openai_tools import whole_calls
from adapters.openai_types import (
    Identity,
    budget_of,
    finish_word,
    forwarded_fields,
    kept,
    sampling_params,
    stop_reason,
    usage_object,
)
from adapters.sse import to_json
from adapters.wire import parse_body
from engines.api import GenerationEvent, GenerationRequest, PromptDetails, Started, TextDelta, TokenLogprob
from engines.errors import HeadraceError

CHUNK_SHAPE = ChunkShape(
    object="chat.completion.chunk",
    before_text=b'"delta":{"content":',
    after_text=b"}",
    without_text=b'"delta":{}',
)
ROLE_DELTA = b'"delta":{"role":"assistant","content":""}'
CALLER_DELTA = b'"delta":{"role":"assistant","content":null}'  # of an answer that must be calls: it has no content


class ChatAdapter:
    """`system_fingerprint` stands in every answer; it should change with what makes answers change. `tolerant` passes
    over fields that are not known."""

    def __init__(self, *, system_fingerprint: str = "headrace", tolerant: bool = False) -> None:
        self._system_fingerprint = system_fingerprint
        self._tolerant = tolerant

    def parse(self, body: bytes, headers: Mapping[str, str], request_id: str) -> ChatExchange:  # noqa: ARG002
        request = parse_body(ChatCompletionRequest, body, tolerant=self._tolerant)
        request.check_combinations()
        identity = Identity(
            f"chatcmpl-{request.request_id or request_id}", int(time.time()), request.model, self._system_fingerprint
        )
        return ChatExchange(request, generation_request(request, request_id), identity)

    def error(self, error: HeadraceError, status: int) -> bytes:
        return error_body(error, status)


def generation_request(request: ChatCompletionRequest, request_id: str) -> GenerationRequest:
    tool_choice = request.chosen()
    return GenerationRequest(
        request_id=request_id,
        model=request.model,
        prompt=request.chat_prompt(request.messages, _effort(request), request.offered_tools()),
        sampling=sampling_params(
            request,
            max_tokens=request.max_completion_tokens or request.max_tokens,
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            prompt_logprobs=request.prompt_logprobs,
        ),
        structured_output=request.structured_output(),
        tool_choice=tool_choice,
        thinking_budget=budget_of(request.thinking_token_budget),
        n=request.n or 1,
        stream=bool(request.stream),
        echo=request.tells_prompt,
        **kept(request),
        forwarded=forwarded_fields(request, _FORWARDED),
    )


def _effort(request: ChatCompletionRequest) -> dict[str, Any]:
    """What templates know of it: how much to reason, and whether to at all."""
    effort = request.reasoning_effort
    return {} if effort is None else {"reasoning_effort": effort, "enable_thinking": effort != "none"}


_FORWARDED = (*NO_EFFECT_FIELDS, "reasoning_effort")  # an upstream has its own field for the effort


class ChatExchange:
    """One chat request and the words for its answer. A single GenerationRequest, so `request_index` is always 0."""

    def __init__(self, request: ChatCompletionRequest, generation: GenerationRequest, identity: Identity) -> None:
        self.requests: Sequence[GenerationRequest] = (generation,)
        self.stream = bool(request.stream)
        self._request = request
        self._n = generation.n
        self._identity = identity
        logprobs = self._render_logprobs if request.logprobs else None
        extras = ChunkExtras.of(request.stream_options, token_ids=bool(request.return_token_ids), logprobs=logprobs)
        self._chunks = ChunkStream(identity, CHUNK_SHAPE, extras)
        self._role = CALLER_DELTA if generation.tool_choice.mode in ("required", "named") else ROLE_DELTA
        self._tells_reasoning = request.include_reasoning is not False

    def frame(self, request_index: int, event: GenerationEvent) -> bytes:  # noqa: ARG002
        if isinstance(event, TextDelta):
            if event.reasoning and not self._tells_reasoning:
                event = replace(event, reasoning="")
            return self._chunks.delta(event.index, event)
        if isinstance(event, Started):
            return self._start(event)
        self._chunks.done(event)
        return b""

    def end(self) -> bytes:
        return self._chunks.end()

    def stream_error(self, error: HeadraceError, status: int) -> bytes:
        return stream_error_frames(error, status)

    def response(self, collected: Sequence[Collected]) -> bytes:
        (whole,) = collected
        answer: ChatCompletion = {
            "id": self._identity.id,
            "object": "chat.completion",
            "created": self._identity.created,
            "model": self._identity.model,
            "system_fingerprint": self._identity.system_fingerprint,
            "choices": [self._choice(choice) for choice in whole.choices],
            "usage": usage_object([whole.usage]),
        }
        if whole.prompt is not None:
            self._add_prompt(answer, whole.prompt)
        return to_json(answer)

    def _start(self, event: Started) -> bytes:
        """One chunk with the role for each choice; the first tells of the prompt what was asked for."""
        choices = range(self._n)
        self._chunks.started(event, choices)
        prompt_fields: dict[str, object] = {}
        if self._request.return_token_ids and event.prompt is not None:
            prompt_fields["prompt_token_ids"] = event.prompt.token_ids
        if self._request.return_prompt_text and event.prompt is not None:
            prompt_fields["prompt_text"] = event.prompt.text
        first = self._chunks.chunk(0, self._role, chunk_fields=prompt_fields)
        return first + b"".join(self._chunks.chunk(choice, self._role) for choice in choices[1:])

    def _choice(self, choice: CollectedChoice) -> ChatChoice:
        answer: ChatChoice = {
            "index": choice.index,
            "message": self._message(choice),
            "logprobs": self._render_logprobs(choice.index, choice.logprobs) if self._request.logprobs else None,
            "finish_reason": finish_word(choice.finish),
            "stop_reason": stop_reason(choice.finish),
        }
        if self._request.return_token_ids:
            answer["token_ids"] = choice.token_ids
        return answer

    def _message(self, choice: CollectedChoice) -> AnswerMessage:
        calls = whole_calls(choice.tool_calls)
        message: AnswerMessage = {
            "role": "assistant",
            "content": choice.text if choice.text or not calls else None,
            "refusal": None,
        }
        if calls:
            message["tool_calls"] = calls
        if choice.reasoning and self._tells_reasoning:
            message["reasoning"] = message["reasoning_content"] = choice.reasoning
        return message

    def _add_prompt(self, answer: ChatCompletion, prompt: PromptDetails) -> None:
        if self._request.return_token_ids:
            answer["prompt_token_ids"] = list(prompt.token_ids)
        if self._request.return_prompt_text:
            answer["prompt_text"] = prompt.text
        if self._request.prompt_logprobs is not None:
            answer["prompt_logprobs"] = prompt_logprobs(prompt, self._request.prompt_logprobs)

    def _render_logprobs(self, _choice: int, tokens: Sequence[TokenLogprob]) -> ChatLogprobs:
        if self._request.return_tokens_as_token_ids:
            tokens = [named_by_id(token) for token in tokens]
        return chat_logprobs(tokens, self._request.top_logprobs or 0)
