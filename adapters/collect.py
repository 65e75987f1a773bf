"""Gather one GenerationRequest's events for an answer that is sent whole."""

from __future__ import annotations

from adapters.adapter import Collected, CollectedChoice
from engines.api import Done, GenerationEvent, GenerationRequest, PromptDetails, TextDelta, Usage
from engines.errors import GenerationFailed


class Collector:
    """Feed every event to `add`; `result` is complete after Done."""

    def __init__(self, request: GenerationRequest) -> None:
        self._choices = [CollectedChoice(index) for index in range(request.n)]
        self._texts: list[list[str]] = [[] for _ in range(request.n)]  # joined once: += would copy a long answer often
        self._prompt: PromptDetails | None = None
        self._usage: Usage | None = None

    def add(self, event: GenerationEvent) -> None:
        if isinstance(event, TextDelta):
            choice = self._choices[event.index]
            choice.deltas.append(event)
            self._texts[event.index].append(event.text)
            choice.reasoning += event.reasoning
            choice.tool_calls.extend(event.tool_calls)
            choice.token_ids.extend(event.token_ids)
            choice.logprobs.extend(event.logprobs)
            choice.finish = event.finish or choice.finish
        elif isinstance(event, Done):
            self._usage = event.usage
        else:
            self._prompt = event.prompt

    def result(self) -> Collected:
        """Raises GenerationFailed when the events ended without Done."""
        if self._usage is None:
            raise GenerationFailed("The engine stopped before the answer was complete.")
        for choice, texts in zip(self._choices, self._texts, strict=True):
            choice.text = "".join(texts)
        return Collected(self._choices, self._usage, self._prompt)
