"""One request's answer on its way from the socket's reader to the request's generator: its choices, events and end.

Knows the core's client only to tell it that a stop string ended a sequence early.
"""

from __future__ import annotations

import asyncio
from collections import deque

from engines.api import ChatPrompt, Done, GenerationEvent, GenerationRequest, PromptDetails, Started, Usage
from engines.errors import GenerationFailed, HeadraceError, InvalidRequest, Overloaded
from engines.native.choice import Choice, token_logprob
from engines.native.core_client import CoreClient
from engines.native.dialect import AnswerPlan
from engines.native.tokenizer import Tokenizer
from engines.native.types import FINISH_ERROR, FINISH_REFUSED, TokenOutput


class Answer:
    """The events of one request on their way from the socket's reader to the request's generator."""

    def __init__(
        self, request: GenerationRequest, token_ids: list[int], tokenizer: Tokenizer, plan: AnswerPlan
    ) -> None:
        after_text = not isinstance(request.prompt, ChatPrompt)
        self.choices = [
            Choice(index, request.sampling, tokenizer, stream=request.stream, after_text=after_text, plan=plan)
            for index in range(request.n)
        ]
        self._request = request
        self._prompt_ids = token_ids
        self._tokenizer = tokenizer
        self._events: deque[GenerationEvent] = deque()
        self._error: HeadraceError | None = None
        self._wakeup: asyncio.Future[None] | None = None
        self._num_open = request.n
        self._cached_tokens = -1

    async def next_events(self) -> list[GenerationEvent]:
        """Everything there is now, at least one. Raises what ended the request early."""
        while not self._events:
            if self._error is not None:
                raise self._error
            self._wakeup = asyncio.get_running_loop().create_future()
            await self._wakeup
        events = list(self._events)
        self._events.clear()
        return events

    def push(self, choice: Choice, output: TokenOutput) -> None:
        if self._cached_tokens < 0:
            self._start(output)
        delta = choice.push(output)
        if delta is None:
            return
        self._events.append(delta)
        if delta.finish is not None:
            self._num_open -= 1
            if self._num_open == 0:
                self._events.append(Done(self._usage()))
        self._wake()

    def fail(self, error: HeadraceError) -> None:
        self._error = error
        self._wake()

    def refuse(self, reason: str) -> None:
        """The core cannot honour the request's grammar, which it mostly says before the first token."""
        output = self._request.structured_output
        prompt = self._request.prompt
        has_tools = isinstance(prompt, ChatPrompt) and prompt.tools
        field = output.field if output is not None else "tools" if has_tools else "thinking_token_budget"
        self.fail(InvalidRequest(f"{field}: {reason}", field=field))

    def _start(self, output: TokenOutput) -> None:
        self._cached_tokens = max(output.cached_tokens, 0)
        details = None
        if self._request.echo or output.prompt_logprobs:
            rows = tuple(row and token_logprob(row, self._tokenizer) for row in output.prompt_logprobs)
            text = self._tokenizer.decode(self._prompt_ids, skip_special_tokens=False)
            details = PromptDetails(text=text, token_ids=tuple(self._prompt_ids), logprobs=rows or None)
        self._events.append(
            Started(
                prompt_tokens=len(self._prompt_ids),
                cached_tokens=self._cached_tokens,
                queued_s=output.queued_s,
                prompt=details,
            )
        )
        self._wake()

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=len(self._prompt_ids),
            completion_tokens=sum(choice.num_tokens for choice in self.choices),
            cached_tokens=self._cached_tokens,
            reasoning_tokens=sum(choice.num_reasoning_tokens for choice in self.choices),
        )

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)


class ChoiceSink:
    """Stands between the core's client and one choice."""

    __slots__ = ("_answer", "_choice", "_client", "_seq_id")

    def __init__(self, answer: Answer, choice: Choice, seq_id: int, client: CoreClient) -> None:
        self._answer = answer
        self._choice = choice
        self._seq_id = seq_id
        self._client = client

    def push(self, output: TokenOutput) -> None:
        if output.finish == FINISH_ERROR:
            self._answer.fail(error_of(output.error))
            return
        if output.finish == FINISH_REFUSED:
            self._answer.refuse(output.error)
            return
        self._answer.push(self._choice, output)
        if self._choice.finished:
            self._client.abort((self._seq_id,))  # a stop string ended it; the core does not know

    def fail(self, error: HeadraceError) -> None:
        self._answer.fail(error)


def error_of(reason: str) -> HeadraceError:
    """What the core could not do, as the client is told."""
    if reason == "overloaded":
        return Overloaded("The engine's queue is full; try again shortly.")
    return GenerationFailed(reason)
