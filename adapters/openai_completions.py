"""POST /v1/completions: one GenerationRequest a prompt; choice `prompt * n + i` is the prompt's i-th."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from adapters.adapter import Collected, CollectedChoice
from adapters.openai_completion_types import NO_EFFECT_FIELDS, Completion, CompletionChoice, CompletionRequest
from adapters.openai_errors import error_body
from adapters.openai_logprobs import (
    CompletionLogprobs,
    CompletionLogprobsBuilder,
    joined,
    mean_logprob,
    named_by_id,
    prompt_logprobs,
)
from adapters.openai_stream import ChunkExtras, ChunkShape, ChunkStream, stream_error_frames
from adapters.openai_types import (
    Identity,
    finish_word,
    forwarded_fields,
    kept,
    sampling_params,
    stop_reason,
    usage_object,
)
from adapters.sse import to_json
from adapters.wire import parse_body
from engines.api import (
    GenerationEvent,
    GenerationRequest,
    Prompt,
    PromptDetails,
    SamplingParams,
    Started,
    TextDelta,
    TextPrompt,
    TokenLogprob,
    TokensPrompt,
)
from engines.errors import GenerationFailed, HeadraceError

DEFAULT_MAX_TOKENS = 16  # OpenAI's, and what clients of this route expect
CHUNK_SHAPE = ChunkShape(object="text_completion", before_text=b'"text":', after_text=b"", without_text=b'"text":""')


class CompletionsAdapter:
    """`system_fingerprint` stands in every answer; it should change with what makes answers change. `tolerant` passes
    over fields that are not known. `max_tokens` holds where a request has none; None is whatever fits."""

    def __init__(
        self,
        *,
        system_fingerprint: str = "headrace",
        tolerant: bool = False,
        max_tokens: int | None = DEFAULT_MAX_TOKENS,
    ) -> None:
        self._system_fingerprint = system_fingerprint
        self._tolerant = tolerant
        self._max_tokens = max_tokens

    def parse(self, body: bytes, headers: Mapping[str, str], request_id: str) -> CompletionExchange:  # noqa: ARG002
        request = parse_body(CompletionRequest, body, tolerant=self._tolerant)
        request.check_combinations()
        identity = Identity(
            f"cmpl-{request.request_id or request_id}", int(time.time()), request.model, self._system_fingerprint
        )
        return CompletionExchange(request, generation_requests(request, request_id, self._max_tokens), identity)

    def error(self, error: HeadraceError, status: int) -> bytes:
        return error_body(error, status)


def generation_requests(
    request: CompletionRequest, request_id: str, max_tokens: int | None = DEFAULT_MAX_TOKENS
) -> tuple[GenerationRequest, ...]:
    sampling = _sampling(request, max_tokens)
    structured_output = request.structured_output()
    several = len(request.prompt) > 1
    return tuple(
        GenerationRequest(
            request_id=f"{request_id}-{index}" if several else request_id,
            model=request.model,
            prompt=_prompt(prompt, request.add_special_tokens is not False),
            sampling=sampling,
            structured_output=structured_output,
            n=request.best_of or request.n or 1,
            stream=bool(request.stream),
            echo=bool(request.echo or request.return_token_ids) or request.prompt_logprobs is not None,
            **kept(request),
            forwarded=forwarded_fields(request, tuple(NO_EFFECT_FIELDS)),
        )
        for index, prompt in enumerate(request.prompt)
    )


def _sampling(request: CompletionRequest, max_tokens: int | None) -> SamplingParams:
    ranks = request.best_of is not None and request.best_of > (request.n or 1)
    echoed = request.logprobs if request.echo else None
    wanted = [count for count in (echoed, request.prompt_logprobs) if count is not None]
    return sampling_params(
        request,
        max_tokens=max_tokens if request.max_tokens is None else request.max_tokens,
        logprobs=0 if ranks and request.logprobs is None else request.logprobs,
        prompt_logprobs=max(wanted, default=None),
    )


def _prompt(prompt: str | tuple[int, ...], add_special_tokens: bool) -> Prompt:
    return TextPrompt(prompt, add_special_tokens) if isinstance(prompt, str) else TokensPrompt(prompt)


class CompletionExchange:
    """One completion request and the words for its answer."""

    def __init__(
        self, request: CompletionRequest, generations: Sequence[GenerationRequest], identity: Identity
    ) -> None:
        self.requests = generations
        self.stream = bool(request.stream)
        self._request = request
        self._n = request.n or 1
        self._identity = identity
        self._builders: dict[int, CompletionLogprobsBuilder] = {}  # by choice
        self._chunks = ChunkStream(
            identity,
            CHUNK_SHAPE,
            ChunkExtras.of(
                request.stream_options,
                token_ids=bool(request.return_token_ids),
                logprobs=None if request.logprobs is None else self._generated_logprobs,
            ),
        )

    def frame(self, request_index: int, event: GenerationEvent) -> bytes:
        if isinstance(event, TextDelta):
            return self._chunks.delta(request_index * self._n + event.index, event)
        if isinstance(event, Started):
            return self._start(range(request_index * self._n, (request_index + 1) * self._n), event)
        self._chunks.done(event)
        return b""

    def end(self) -> bytes:
        return self._chunks.end()

    def stream_error(self, error: HeadraceError, status: int) -> bytes:
        return stream_error_frames(error, status)

    def response(self, collected: Sequence[Collected]) -> bytes:
        answer: Completion = {
            "id": self._identity.id,
            "object": "text_completion",
            "created": self._identity.created,
            "model": self._identity.model,
            "system_fingerprint": self._identity.system_fingerprint,
            "choices": [
                self._choice(request_index * self._n + rank, choice, whole.prompt)
                for request_index, whole in enumerate(collected)
                for rank, choice in enumerate(best(whole.choices, self._n))
            ],
            "usage": usage_object([whole.usage for whole in collected]),
        }
        return to_json(answer)

    def _start(self, choices: range, event: Started) -> bytes:
        """One chunk for each choice if the prompt is to be told: its text (echo) or its token ids."""
        self._chunks.started(event, choices)
        request = self._request
        if not (request.echo or request.return_token_ids):
            return b""
        prompt = _required(event.prompt)
        fields = {"token_ids": (), "prompt_token_ids": prompt.token_ids} if request.return_token_ids else None
        text = b'"text":' + to_json(prompt.text if request.echo else "")
        return b"".join(
            self._chunks.chunk(choice, text, logprobs=self._prompt_logprobs(choice, prompt), choice_fields=fields)
            for choice in choices
        )

    def _choice(self, index: int, choice: CollectedChoice, prompt: PromptDetails | None) -> CompletionChoice:
        request = self._request
        answer: CompletionChoice = {
            "index": index,
            "text": _required(prompt).text + choice.text if request.echo else choice.text,
            "logprobs": self._logprobs(index, choice, prompt),
            "finish_reason": finish_word(choice.finish),
            "stop_reason": stop_reason(choice.finish),
        }
        if request.return_token_ids:
            answer["token_ids"] = choice.token_ids
            answer["prompt_token_ids"] = list(_required(prompt).token_ids)
        if request.prompt_logprobs is not None:
            answer["prompt_logprobs"] = prompt_logprobs(_required(prompt), request.prompt_logprobs)
        return answer

    def _logprobs(self, index: int, choice: CollectedChoice, prompt: PromptDetails | None) -> CompletionLogprobs | None:
        if self._request.logprobs is None:
            return None
        echoed = self._prompt_logprobs(index, _required(prompt)) if self._request.echo else None
        generated = self._generated_logprobs(index, choice.logprobs)
        return generated if echoed is None else joined(echoed, generated)

    def _prompt_logprobs(self, choice: int, prompt: PromptDetails) -> CompletionLogprobs | None:
        if self._request.logprobs is None or not self._request.echo:
            return None
        if self._request.return_tokens_as_token_ids:
            named = [token and named_by_id(token) for token in prompt.logprobs or ()]
            prompt = replace(prompt, logprobs=tuple(named))
        return self._builder(choice).prompt(prompt)

    def _generated_logprobs(self, choice: int, tokens: Sequence[TokenLogprob]) -> CompletionLogprobs:
        if self._request.return_tokens_as_token_ids:
            tokens = [named_by_id(token) for token in tokens]
        return self._builder(choice).generated(tokens)

    def _builder(self, choice: int) -> CompletionLogprobsBuilder:
        return self._builders.setdefault(choice, CompletionLogprobsBuilder(self._request.logprobs or 0))


def best(choices: Sequence[CollectedChoice], n: int) -> Sequence[CollectedChoice]:
    """The n choices of highest mean logprob, best first; all of them in their own order where none is left out."""
    if len(choices) == n:
        return choices
    return sorted(choices, key=lambda choice: mean_logprob(choice.logprobs), reverse=True)[:n]


def _required(prompt: PromptDetails | None) -> PromptDetails:
    if prompt is None:
        raise GenerationFailed("The engine did not tell the prompt that echo asks for.")
    return prompt
