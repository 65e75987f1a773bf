"""Anthropic's error shape, `{"type": "error", "error": {"type", "message"}}`, and the HTTP status that goes with it."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from adapters.sse import named_frame, to_json
from adapters.wire import clip
from engines.errors import HeadraceError, InvalidRequest, Overloaded

MAX_ERROR_CHARS = 2000
OVERLOADED = 529  # Anthropic's own status, on which its SDK tries again as on 503

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}


class RefusalDetails(TypedDict):
    error_code: Literal["thread_unsupported_request"]
    unsupported: list[str]


NO_THREADS: RefusalDetails = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
"""Said when `thread` is refused: Anthropic's SDK, whose tool runner asks for one, then sends conversations whole."""


class MessagesErrorDetail(TypedDict):
    type: str
    message: str
    details: NotRequired[RefusalDetails]


class MessagesError(TypedDict):
    type: Literal["error"]
    error: MessagesErrorDetail


def messages_status(error: HeadraceError, status: int) -> int:
    """Anthropic's status for `error`, where it is not `status`, the gateway's own."""
    return OVERLOADED if isinstance(error, Overloaded) else status


def messages_error(error: HeadraceError, status: int) -> MessagesError:
    kind = _TYPES.get(messages_status(error, status))
    if kind is None:
        kind = "invalid_request_error" if 400 <= status < 500 else "api_error"
    detail: MessagesErrorDetail = {"type": kind, "message": clip(_message(error), MAX_ERROR_CHARS)}
    if isinstance(error, InvalidRequest) and error.field == "thread":
        detail["details"] = NO_THREADS
    return {"type": "error", "error": detail}


def _message(error: HeadraceError) -> str:
    """The shape has no place for the field but the message. Engines do not always say it there."""
    field = error.field
    if isinstance(error, InvalidRequest) and field is not None and field not in error.message:
        return f"{field}: {error.message}"
    return error.message


def messages_error_body(error: HeadraceError, status: int) -> bytes:
    return to_json(messages_error(error, status))


def messages_error_frame(error: HeadraceError, status: int) -> bytes:
    """An error inside a stream. Nothing follows it."""
    return named_frame("error", messages_error(error, status))
