"""What is known of one HTTP request while it is served: written by the layers inside, read by telemetry at its end."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from starlette.types import Scope

from engines.api import GenerationEvent, Started, TextDelta
from engines.errors import HeadraceError, InvalidRequest, Overloaded

CLIENT_LEFT = 499  # recorded, never sent: the client closed the connection before its answer was complete
_SCOPE_KEY = "headrace.record"
_CLIENT_ID = re.compile(rb"[A-Za-z0-9_.:+/=@-]{1,128}")


@dataclass(slots=True)
class RequestRecord:
    """Times are `time.perf_counter` seconds.

    `id` is the client's X-Request-Id where it sent a sane one, and is sent back. `unique_id` is this request's alone:
    two requests under one id may be in an engine at the same time.
    """

    id: str
    unique_id: str
    started_at: float = field(default_factory=time.perf_counter)
    model: str = ""  # canonical name, once resolved
    status: int = 0  # 0: nothing sent yet
    generates: bool = False  # a request to generate, whatever became of it
    error: str = ""  # the error that the client was told, also one inside a stream whose status is 200
    failure: str = ""  # its kind, in one of the few words that a metric's label takes
    cached_tokens: int = 0
    completion_tokens: int = 0
    parsed_at: float | None = None  # when the body was read and found valid
    queued_s: float = 0.0  # longest wait of its prompts for a place in the engine's batch, as far as the engine says
    max_new_tokens: int | None = None  # what the client asked for
    first_token_at: float | None = None
    _started_prompt_tokens: int = 0
    _done_prompt_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Counted when a prompt is processed; a remote engine may learn it only with the last event."""
        return max(self._started_prompt_tokens, self._done_prompt_tokens)

    def fail(self, error: HeadraceError) -> None:
        """The client was told of `error`."""
        self.error = error.message
        self.failure = _kind(error)

    def drop(self) -> None:
        """The client left before its answer was complete."""
        self.error, self.failure = "The client left.", "dropped"

    def count_prompt(self, num_tokens: int) -> None:
        """Tokens that were processed and bring no events."""
        self._started_prompt_tokens += num_tokens

    def add(self, event: GenerationEvent) -> None:
        if isinstance(event, TextDelta):
            if self.first_token_at is None:
                self.first_token_at = time.perf_counter()
            self.completion_tokens += event.num_tokens
        elif isinstance(event, Started):
            self._started_prompt_tokens += event.prompt_tokens
            self.queued_s = max(self.queued_s, event.queued_s)
        else:
            self._done_prompt_tokens += event.usage.prompt_tokens
            self.cached_tokens += event.usage.cached_tokens


def _kind(error: HeadraceError) -> str:
    if isinstance(error, InvalidRequest):
        return "template" if error.code == "template_error" else "validation"
    return "overloaded" if isinstance(error, Overloaded) else "generation"


@dataclass(frozen=True, slots=True)
class Spent:
    """Where a request's time went, in seconds."""

    validation: float
    queue: float
    inference: float


def spent_s(record: RequestRecord, total_s: float) -> Spent:
    """`total_s`: from the request's headers until now or its end."""
    validation = 0.0 if record.parsed_at is None else record.parsed_at - record.started_at
    return Spent(validation, record.queued_s, max(total_s - validation - record.queued_s, 0.0))


def open_record(scope: Scope) -> RequestRecord:
    """The record of a new request, kept in its ASGI scope."""
    unique_id = secrets.token_hex(12)
    client_id = _client_id(scope["headers"])
    record = RequestRecord(client_id or unique_id, f"{client_id}-{unique_id[:8]}" if client_id else unique_id)
    scope[_SCOPE_KEY] = record
    return record


def record_of(scope: Scope) -> RequestRecord:
    return scope[_SCOPE_KEY]


def _client_id(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The client's id, unless its length or characters could harm a log or a header."""
    for name, value in headers:
        if name == b"x-request-id" and _CLIENT_ID.fullmatch(value):
            return value.decode("ascii")
    return None
