"""The error shape of TGI's native API: `{"error": text, "error_type": word}`, and the HTTP status that goes with it.

Clients choose their exception by `error_type` first and by the status where they do not know the word.
"""

from __future__ import annotations

from typing import NoReturn

from typing_extensions import TypedDict

from adapters.sse import data_frame, to_json
from adapters.wire import clip
from engines.errors import (
    EngineUnavailable,
    GenerationFailed,
    HeadraceError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    UpstreamError,
)

MAX_ERROR_CHARS = 2000
INVALID_JSON, TEMPLATE_ERROR, INTERNAL_ERROR = "invalid_json", "template_error", "internal_error"


class NativeError(TypedDict):
    error: str
    error_type: str


def refuse_native(message: str, field: str) -> NoReturn:
    """Refuse a request for one of TGI's own rules; `message` names the field in TGI's way, in backticks."""
    raise InvalidRequest(message, field=field, code="invalid_value")


def native_status(error: HeadraceError, status: int) -> int:
    """TGI's status for `error`; `status`, the gateway's own, where TGI knows no such error."""
    if isinstance(error, InvalidRequest):
        return 400 if error.code == INVALID_JSON else 422
    if isinstance(error, Overloaded):
        return 429
    if isinstance(error, GenerationFailed) and error.code != INTERNAL_ERROR:
        return 424
    return status


def native_error(error: HeadraceError) -> NativeError:
    message = clip(error.message, MAX_ERROR_CHARS)
    if isinstance(error, InvalidRequest):
        if error.code == TEMPLATE_ERROR:
            return {"error": f"Template error: {message.removeprefix('messages: ')}", "error_type": "template_error"}
        # Engines speak of the limit by OpenAI's name.
        message = message.replace("max_tokens", "max_new_tokens")
        return {"error": f"Input validation error: {message}", "error_type": "validation"}
    if isinstance(error, Overloaded):
        return {"error": f"Model is overloaded: {message}", "error_type": "overloaded"}
    if isinstance(error, GenerationFailed | UpstreamError):
        return {"error": f"Request failed during generation: {message}", "error_type": "generation"}
    if isinstance(error, EngineUnavailable):
        return {"error": message, "error_type": "unavailable"}
    return {"error": message, "error_type": "not_found" if isinstance(error, ModelNotFound) else "http"}


def native_error_body(error: HeadraceError, status: int) -> bytes:  # noqa: ARG001 (the shape does not hold it)
    return to_json(native_error(error))


def native_error_frame(error: HeadraceError) -> bytes:
    """An error inside a stream. Nothing follows it: the native streams have no `[DONE]`."""
    return data_frame(native_error(error))
