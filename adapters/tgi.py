"""TGI's native API: POST /, /generate and /generate_stream, from their JSON to a GenerationRequest and back.

What was copied of TGI's behaviour, what was mended and why is docs/tgi.md, for people who migrate.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from adapters.adapter import Collected, CollectedChoice, Exchange
from adapters.openai_logprobs import mean_logprob
from adapters.sse import data_frame, to_json
from adapters.tgi_dialect import Told
from adapters.tgi_errors import native_error_body, native_error_frame, refuse_native
from adapters.tgi_grammar import structured_output
from adapters.tgi_tokens import UNKNOWN_ID, TokenTexts, cut_to, num_chars, prefill_tokens, top_tokens
from adapters.tgi_types import (
    BestOfSequence,
    Details,
    GenerateParameters,
    NativeFinish,
    NativeLimits,
    NativeRequest,
    NativeResponse,
    NativeStreamEvent,
    NativeToken,
    PrefillToken,
    StreamDetails,
)
from adapters.watermark import watermark_params
from adapters.wire import parse_body
from engines.api import (
    Finish,
    GenerationEvent,
    GenerationRequest,
    Prompt,
    SamplingParams,
    Started,
    TextDelta,
    TextPrompt,
    TokensPrompt,
)
from engines.errors import HeadraceError

Form = Literal["any", "whole", "stream"]
"""How a route answers: POST / as the request says (and then an array of one), /generate whole, /generate_stream not."""

_MAX_RANDOM_SEED = 2**53 - 1  # larger ones lose digits in clients that read JSON numbers as doubles
_SEED_MASK = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Plan:
    """A native request, decided. `seed` None: greedy."""

    generation: GenerationRequest
    seed: int | None
    details: bool
    num_top: int
    prompt_text: str  # what `generated_text` begins with; "" unless the full text was asked for
    num_input_chars: int
    ignored: tuple[str, ...] = ()


class NativeAdapter:
    """`default_model` names the model where a request does not; TGI's never do."""

    def __init__(self, form: Form, limits: NativeLimits, default_model: Callable[[], str]) -> None:
        self._form: Form = form
        self._limits = limits
        self._default_model = default_model

    def parse(self, body: bytes, headers: Mapping[str, str], request_id: str) -> NativeExchange:  # noqa: ARG002
        request = parse_body(NativeRequest, body)
        stream = self._form == "stream" or (self._form == "any" and bool(request.stream))
        # On POST / the model's task decides in TGI, and every model here generates text.
        plan = plan_of(
            request,
            request_id,
            limits=self._limits,
            model=request.model or self._default_model(),
            stream=stream,
            full_text=self._form == "any",
        )
        return NativeExchange(plan, stream=stream, in_array=self._form == "any")

    def error(self, error: HeadraceError, status: int) -> bytes:
        return native_error_body(error, status)


def plan_of(
    request: NativeRequest, request_id: str, *, limits: NativeLimits, model: str, stream: bool, full_text: bool
) -> Plan:
    """Raises InvalidRequest. `full_text` holds where the request does not say."""
    given = request.parameters
    asked = given or GenerateParameters(do_sample=True)  # as TGI has it: no parameters at all means sampling
    asked.check(limits, stream=stream)
    if not request.inputs:
        refuse_native("`inputs` must not be empty", "inputs")
    seed = _seed(asked)
    details = bool(asked.details or asked.decoder_input_details)
    num_top = asked.top_n_tokens or 0
    best_of = asked.best_of or 1
    tells_tokens = details or stream or best_of > 1
    sampling = SamplingParams(
        max_tokens=asked.max_new_tokens,
        temperature=0.0 if seed is None else 1.0 if asked.temperature is None else asked.temperature,
        top_k=asked.top_k or 0,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        min_p=0.0,
        typical_p=1.0 if asked.typical_p is None else asked.typical_p,
        repetition_penalty=1.0 if asked.repetition_penalty is None else asked.repetition_penalty,
        frequency_penalty=asked.frequency_penalty or 0.0,
        seed=seed,
        stop=asked.stops,
        include_stop_str_in_output=_either(asked.include_stop_str_in_output, limits.keep_stop),
        # TGI's clients always send false, so it says no more than nothing at all: as the server is set.
        watermark=watermark_params(asked.watermark or None),
        logprobs=num_top if tells_tokens else None,
        logprobs_optional=num_top == 0,
        prompt_logprobs=0 if asked.decoder_input_details else None,
    )
    generation = GenerationRequest(
        request_id=request_id,
        model=model,
        prompt=TextPrompt(request.inputs),
        sampling=sampling,
        structured_output=structured_output(asked.grammar),
        n=best_of,
        stream=stream,
        truncate_prompt_tokens=asked.truncate,
    )
    wants_full = _either(asked.return_full_text, full_text)
    prompt_text = request.inputs if wants_full else ""
    return Plan(generation, seed, details, num_top, prompt_text, len(request.inputs), tuple(request.ignored))


def _seed(asked: GenerateParameters) -> int | None:
    if not (asked.do_sample or asked.warps):
        return None
    return random.randint(0, _MAX_RANDOM_SEED) if asked.seed is None else asked.seed


def _either(asked: bool | None, otherwise: bool) -> bool:
    return otherwise if asked is None else asked


class NativeExchange:
    """One native request and the words for its answer."""

    def __init__(self, plan: Plan, *, stream: bool, in_array: bool) -> None:
        self.requests: Sequence[GenerationRequest] = (plan.generation,)
        self.stream = stream
        self.num_input_chars = plan.num_input_chars
        self.ignored = plan.ignored
        self._plan = plan
        self._in_array = in_array
        # of a stream, so far
        self._texts = TokenTexts()
        self._text: list[str] = []
        self._num_events = 0
        self._num_token_chars = 0
        self._num_tokens = 0
        self._input_length = 0

    # --- streamed -----------------------------------------------------------------------------------------------------

    def frame(self, request_index: int, event: GenerationEvent) -> bytes:  # noqa: ARG002
        if isinstance(event, TextDelta):
            return self._events(event)
        if isinstance(event, Started):
            self._input_length = event.prompt_tokens
        return b""

    def end(self) -> bytes:
        return b""

    def stream_error(self, error: HeadraceError, status: int) -> bytes:  # noqa: ARG002
        return native_error_frame(error)

    def _events(self, delta: TextDelta) -> bytes:
        """One event a token. The last one of a stream tells the whole text, so there is always one to tell it."""
        self._text.append(delta.text)
        self._num_tokens += delta.num_tokens
        tokens = self._texts.of(delta)
        if delta.finish is None:
            self._num_token_chars += num_chars(tokens)
            return b"".join(self._event(token, delta, i) for i, token in enumerate(tokens))
        text = "".join(self._text)
        if not tokens:
            tokens: list[NativeToken] = [{"id": UNKNOWN_ID, "text": "", "logprob": None, "special": True}]
        if isinstance(delta.finish.matched, str):
            cut_to(tokens, self._num_token_chars + num_chars(tokens) - len(text))
        events = [self._event(token, delta, i) for i, token in enumerate(tokens[:-1])]
        details = self._stream_details(delta.finish) if self._plan.details else None
        events.append(self._event(tokens[-1], delta, len(tokens) - 1, self._plan.prompt_text + text, details))
        return b"".join(events)

    def _event(
        self,
        token: NativeToken,
        delta: TextDelta,
        place: int,
        text: str | None = None,
        details: StreamDetails | None = None,
    ) -> bytes:
        self._num_events += 1
        if self._plan.num_top and place < len(delta.logprobs):
            event: NativeStreamEvent = {
                "index": self._num_events,
                "token": token,
                "top_tokens": top_tokens(delta.logprobs[place], self._plan.num_top),
                "generated_text": text,
                "details": details,
            }
        else:
            event = {"index": self._num_events, "token": token, "generated_text": text, "details": details}
        return data_frame(event)

    def _stream_details(self, finish: Finish) -> StreamDetails:
        return {
            "finish_reason": native_finish(finish),
            "generated_tokens": self._num_tokens,
            "seed": self._plan.seed,
            "input_length": self._input_length,
        }

    # --- whole --------------------------------------------------------------------------------------------------------

    def response(self, collected: Sequence[Collected]) -> bytes:
        answer = native_response(self._plan, collected[0])
        return to_json([answer] if self._in_array else answer)


@dataclass(frozen=True, slots=True)
class Facts:
    """What headers tell of a request. `ignored`: fields that nobody knows."""

    num_input_chars: int
    ignored: Sequence[str] = ()


def facts_of(exchange: Exchange) -> Facts:
    """Of any protocol's exchange; the characters of a conversation are those of its texts."""
    if isinstance(exchange, NativeExchange):
        return Facts(exchange.num_input_chars, exchange.ignored)
    ignored = exchange.ignored if isinstance(exchange, Told) else ()
    return Facts(sum(_num_chars(request.prompt) for request in exchange.requests), ignored)


def _num_chars(prompt: Prompt) -> int:
    if isinstance(prompt, TextPrompt):
        return len(prompt.text)
    if isinstance(prompt, TokensPrompt):
        return 0
    return sum(_num_content_chars(message.get("content")) for message in prompt.messages)


def _num_content_chars(content: Any) -> int:
    """Of a message's content: a text, or an array of parts with texts."""
    if isinstance(content, str):
        return len(content)
    return sum(len(part["text"]) for part in content) if isinstance(content, list) else 0  # pyright: ignore


def native_response(plan: Plan, whole: Collected) -> NativeResponse:
    best, *others = sorted(whole.choices, key=lambda choice: mean_logprob(choice.logprobs), reverse=True)
    answer: NativeResponse = {"generated_text": plan.prompt_text + best.text}
    if plan.details:
        prefill = prefill_tokens(whole.prompt)
        details: Details = {**_choice_details(plan, best, prefill, whole)}
        if others:
            details["best_of_sequences"] = [_best_of_sequence(plan, choice, prefill, whole) for choice in others]
        answer["details"] = details
    return answer


def _best_of_sequence(
    plan: Plan, choice: CollectedChoice, prefill: Sequence[PrefillToken], whole: Collected
) -> BestOfSequence:
    return {"generated_text": plan.prompt_text + choice.text, **_choice_details(plan, choice, prefill, whole)}


def _choice_details(plan: Plan, choice: CollectedChoice, prefill: Sequence[PrefillToken], whole: Collected) -> Details:
    finish = choice.finish or Finish("abort")
    piece = TextDelta(choice.index, choice.text, 0, tuple(choice.token_ids), tuple(choice.logprobs), finish)
    tokens = TokenTexts().of(piece)
    if isinstance(finish.matched, str):
        cut_to(tokens, num_chars(tokens) - len(choice.text))
    counted = len(choice.token_ids) or (whole.usage.completion_tokens if len(whole.choices) == 1 else len(tokens))
    details: Details = {
        "finish_reason": native_finish(finish),
        "generated_tokens": counted,
        # An engine gives its i-th choice the i-th seed from the request's on.
        "seed": None if plan.seed is None else (plan.seed + choice.index) & _SEED_MASK if choice.index else plan.seed,
        "prefill": prefill,
        "tokens": tokens,
    }
    if plan.num_top:
        details["top_tokens"] = [top_tokens(token, plan.num_top) for token in choice.logprobs]
    return details


def native_finish(finish: Finish) -> NativeFinish:
    if finish.reason == "stop":
        return "stop_sequence" if isinstance(finish.matched, str) else "eos_token"
    return "length"
