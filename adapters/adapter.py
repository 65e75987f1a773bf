"""The contract between the gateway and a wire protocol.

An `Adapter` parses a request body into an `Exchange`: the frozen `GenerationRequest`s it stands for, and how to say
their events in the protocol's own words. The gateway iterates engines and writes bytes; it never looks inside either.

Time per token matters here: a stream's frames are rendered once per exchange and only the text is escaped per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from engines.api import (
    Finish,
    GenerationEvent,
    GenerationRequest,
    PromptDetails,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from engines.errors import HeadraceError


@dataclass(slots=True)
class CollectedChoice:
    """One choice, whole."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    finish: Finish | None = None
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list[ToolCallDelta])
    deltas: list[TextDelta] = field(default_factory=list[TextDelta])  # what it was gathered from, in order


@dataclass(slots=True)
class Collected:
    """All events of one GenerationRequest, gathered."""

    choices: list[CollectedChoice]
    usage: Usage
    prompt: PromptDetails | None = None


class Exchange(Protocol):
    """One parsed wire request and the words for its answer."""

    @property
    def requests(self) -> Sequence[GenerationRequest]:
        """One per prompt; all name the same model."""
        ...

    @property
    def stream(self) -> bool: ...

    def response(self, collected: Sequence[Collected]) -> bytes:
        """The whole answer's body, `collected` in the order of `requests`."""
        ...

    def frame(self, request_index: int, event: GenerationEvent) -> bytes:
        """The server-sent event(s) for one engine event, complete with their blank lines; b"" when it says nothing."""
        ...

    def end(self) -> bytes:
        """What closes a stream after every request is Done (a usage chunk if asked for, `[DONE]`)."""
        ...

    def stream_error(self, error: HeadraceError, status: int) -> bytes:
        """An in-band error after the first byte, and what closes the stream then."""
        ...


class Adapter(Protocol):
    """A protocol's entry: one per route."""

    def parse(self, body: bytes, headers: Mapping[str, str], request_id: str) -> Exchange:
        """Raises InvalidRequest naming the field for anything it cannot honour."""
        ...

    def error(self, error: HeadraceError, status: int) -> bytes:
        """An error body in the protocol's shape."""
        ...
