"""An upstream's answer as engine events: chunks one by one, or one whole answer.

Owns what the events promise (each choice finishes once, Done comes last) against upstreams that keep it loosely.
Token counts per piece are an estimate where the upstream tells none: one token for a piece with text; Done has the
upstream's own totals. Reads no sockets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import msgspec

from engines.api import (
    ChatPrompt,
    Done,
    Finish,
    FinishReason,
    GenerationRequest,
    PromptDetails,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from engines.errors import UpstreamError
from engines.remote.logprobs import chat_logprobs, completion_logprobs
from engines.remote.wire import Answer, Choice, Message, UpstreamUsage, decode_answer

DONE = b"[DONE]"
_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
}


class AnswerReader:
    """One request's answer, read in order. Not reusable."""

    __slots__ = ("_finished", "_generated", "_is_chat", "_n", "_streamed", "_usage", "_wanted_logprobs")

    def __init__(self, request: GenerationRequest) -> None:
        self._n = request.n
        self._streamed = request.stream
        self._is_chat = isinstance(request.prompt, ChatPrompt)
        self._wanted_logprobs = request.sampling.logprobs
        self._finished: set[int] = set()
        self._generated = 0
        self._usage: UpstreamUsage | None = None

    @property
    def prompt_tokens(self) -> int:
        """0 as long as the upstream has not told; most tell at the end of a stream."""
        return self._usage.prompt_tokens if self._usage else 0

    @property
    def completion_tokens(self) -> int:
        return self._usage.completion_tokens if self._usage else self._generated

    @property
    def cached_tokens(self) -> int:
        details = self._usage.prompt_tokens_details if self._usage else None
        return (details.cached_tokens or 0) if details else 0

    @property
    def _reasoning_tokens(self) -> int:
        details = self._usage.completion_tokens_details if self._usage else None
        return (details.reasoning_tokens or 0) if details else 0

    def decode(self, data: bytes) -> Answer:
        """Raises UpstreamError for an error in the answer's place, and for what is no answer at all."""
        try:
            answer = decode_answer(data)
        except msgspec.MsgspecError as error:
            raise UpstreamError(f"The upstream sent something that is not an OpenAI answer: {error}") from error
        if answer.error is not None:
            raise error_from(answer.error)
        if answer.usage is not None:
            self._usage = answer.usage
        return answer

    def deltas(self, answer: Answer) -> Iterator[TextDelta]:
        """Raises UpstreamError for what an event cannot carry, and for text after a choice's end."""
        for choice in answer.choices:
            delta = self._delta(choice)
            if delta is not None:
                yield delta

    def _delta(self, choice: Choice) -> TextDelta | None:
        message = choice.delta or choice.message
        text, reasoning, calls = choice.text or "", "", ()
        if message is not None:
            _refuse_function_call(message)
            text = message.content or message.refusal or ""
            reasoning = message.reasoning or message.reasoning_content or ""
            calls = _calls(message)
        finish = self._finish(choice) if choice.finish_reason else None
        logprobs = self._logprobs(choice) if self._wanted_logprobs is not None else ()
        if not (text or reasoning or calls or logprobs) and finish is None:
            return None
        if choice.index in self._finished:
            raise UpstreamError("The upstream went on with a choice that it had finished.")
        if finish is not None:
            self._finished.add(choice.index)
        num_tokens = self._num_tokens(choice, bool(text or reasoning or calls), logprobs)
        self._generated += num_tokens
        return TextDelta(choice.index, text, num_tokens, choice.token_ids or (), logprobs, finish, reasoning, calls)

    def _finish(self, choice: Choice) -> Finish:
        reason = _REASONS.get(choice.finish_reason or "", "abort")
        return Finish(reason, choice.stop_reason if reason == "stop" else None)

    def _logprobs(self, choice: Choice) -> tuple[TokenLogprob, ...]:
        parse = chat_logprobs if self._is_chat else completion_logprobs
        try:
            return parse(choice.logprobs, self._wanted_logprobs or 0)
        except msgspec.MsgspecError as error:
            raise UpstreamError(f"The upstream sent log-probabilities of an unknown shape: {error}") from error

    def _num_tokens(self, choice: Choice, says_something: bool, logprobs: tuple[TokenLogprob, ...]) -> int:
        if logprobs or choice.token_ids:
            return len(choice.token_ids or logprobs)
        if not self._streamed and self._n == 1 and self._usage is not None:
            return self._usage.completion_tokens
        return int(says_something)

    def started(self, prompt: PromptDetails | None) -> Started:
        return Started(prompt_tokens=self.prompt_tokens, cached_tokens=self.cached_tokens, prompt=prompt)

    def done(self) -> Done:
        """Raises UpstreamError when the answer ended before every choice did."""
        missing = self._n - len(self._finished)
        if missing > 0:
            raise UpstreamError(f"The upstream ended its answer with {missing} of {self._n} choices unfinished.")
        return Done(
            Usage(
                prompt_tokens=self.prompt_tokens,
                completion_tokens=self.completion_tokens,
                cached_tokens=self.cached_tokens,
                reasoning_tokens=self._reasoning_tokens,
            )
        )


def _calls(message: Message) -> tuple[ToolCallDelta, ...]:
    """Pieces as they come; whole calls have no index, so they count themselves."""
    return tuple(
        ToolCallDelta(
            position if piece.index is None else piece.index,
            (piece.function.arguments or "") if piece.function else "",
            piece.id or None,
            (piece.function.name or None) if piece.function else None,
        )
        for position, piece in enumerate(message.tool_calls or ())
    )


def _refuse_function_call(message: Message) -> None:
    if message.calls_function:
        raise UpstreamError("The upstream answered with a function_call, which a remote engine does not bring back.")


def error_from(error: object, status: int = 0) -> UpstreamError:
    """An OpenAI error object, or whatever an upstream puts in its place, as ours. `status` 0: sent in a stream."""
    if not isinstance(error, dict):
        return UpstreamError(str(error)[:1000] if error else "The upstream failed.", status=status)
    fields = cast("dict[str, Any]", error)
    code: Any = fields.get("code")
    if not status and isinstance(code, int) and 400 <= code <= 599:
        status = code
    message: Any = fields.get("message") or "The upstream failed."
    param: Any = fields.get("param")
    return UpstreamError(
        str(message)[:1000],
        status=status,
        field=param if isinstance(param, str) else None,
        code=code if isinstance(code, str) else None,
    )
