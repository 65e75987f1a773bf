"""OpenAI's error shape: `{"error": {"message", "type", "param", "code"}}`, for bodies and for streams.

Knows which error type goes with which HTTP status; the status itself is the gateway's choice.
"""

from __future__ import annotations

from typing_extensions import TypedDict

from adapters.sse import to_json
from adapters.wire import clip
from engines.errors import HeadraceError

MAX_ERROR_CHARS = 2000  # an upstream's message may be a whole page

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ErrorDetail(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    error: ErrorDetail


def error_type(status: int) -> str:
    """OpenAI's word for a status: its SDK raises by status, people read this."""
    return _TYPES.get(status, "invalid_request_error" if 400 <= status < 500 else "server_error")


def error_object(error: HeadraceError, status: int) -> ErrorBody:
    message = clip(error.message, MAX_ERROR_CHARS)
    return {"error": {"message": message, "type": error_type(status), "param": error.field, "code": error.code}}


def error_body(error: HeadraceError, status: int) -> bytes:
    return to_json(error_object(error, status))
