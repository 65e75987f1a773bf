"""Everything that can go wrong between a request and its answer, as one tree.

HeadraceError
├── InvalidRequest            the client sent something that cannot be honoured (names the field)
│   ├── PromptTooLong         prompt and output cannot fit the model's context
│   └── UnsupportedByEngine   valid on the wire, but this engine cannot do it
├── ModelNotFound             no engine serves that name
├── Overloaded                the engine's queue is full; retrying later may succeed
├── EngineUnavailable         the engine is starting, stopping or dead
├── GenerationFailed          the engine accepted the request and then could not finish it
└── UpstreamError             a remote engine's upstream answered with an error
    └── UpstreamTimeout       ... or did not answer in time

`gateway/errors.py` maps each leaf to an HTTP status in one table; a test fails for a leaf without an entry.
"""

from __future__ import annotations


class HeadraceError(Exception):
    """Root of the tree. `message` is written for the client: no secrets, no paths, no stack traces."""

    def __init__(self, message: str, *, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.code = code


class InvalidRequest(HeadraceError):
    """The request cannot be honoured as sent; `field` names the offending field."""


class PromptTooLong(InvalidRequest):
    """The prompt (with the requested output) exceeds the model's context length or the KV cache."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message, field=field, code="context_length_exceeded")


class UnsupportedByEngine(InvalidRequest):
    """The field is valid on the wire, but the engine behind this model cannot honour it."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message, field=field, code="unsupported_parameter")


class ModelNotFound(HeadraceError):
    """No engine serves a model of that name."""

    def __init__(self, model: str) -> None:
        super().__init__(f"The model '{model}' does not exist.", field="model", code="model_not_found")


class Overloaded(HeadraceError):
    """The engine's queue is full. `retry_after_s` is a hint for the Retry-After header."""

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message, code="overloaded")
        self.retry_after_s = retry_after_s


class EngineUnavailable(HeadraceError):
    """The engine is not able to answer: starting, stopping, or its process has died."""


class GenerationFailed(HeadraceError):
    """The engine accepted the request and then could not finish it."""


class UpstreamError(HeadraceError):
    """A remote engine's upstream refused or failed; `status` is the upstream's own HTTP status, 0 if it gave none."""

    def __init__(self, message: str, *, status: int = 0, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message, field=field, code=code)
        self.status = status


class UpstreamTimeout(UpstreamError):
    """The upstream did not connect or answer within its time limit."""
