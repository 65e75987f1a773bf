"""The one table from what went wrong to an HTTP status, and the refusals that only HTTP knows.

Adapters render errors in their protocol's shape; here it is decided which status and headers go with them. Routes that
belong to no protocol (an unknown path, /health, ...) use OpenAI's shape.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from adapters.anthropic_errors import messages_error_body, messages_status
from adapters.anthropic_models import VERSION_HEADER
from adapters.openai_errors import error_body
from adapters.tgi_errors import native_error_body, native_status
from engines.errors import (
    EngineUnavailable,
    GenerationFailed,
    HeadraceError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PromptTooLong,
    UnsupportedByEngine,
    UpstreamError,
    UpstreamTimeout,
)
from gateway.record import record_of

logger = logging.getLogger("headrace.gateway")


class HttpRefusal(HeadraceError):
    """Refused before any protocol looked at the request."""


class UnknownRoute(HttpRefusal):
    def __init__(self, method: str, path: str) -> None:
        super().__init__(f"Unknown route: {method} {path[:200]}", code="unknown_url")


class MethodNotAllowed(HttpRefusal):
    def __init__(self, method: str, path: str, allowed: Iterable[str]) -> None:
        self.allowed = ", ".join(sorted(allowed))
        super().__init__(
            f"{path[:200]} does not answer {method}; it answers {self.allowed}.", code="method_not_allowed"
        )


class UnsupportedMediaType(HttpRefusal):
    def __init__(self, message: str) -> None:
        super().__init__(message, code="unsupported_media_type")


class Unauthorized(HttpRefusal):
    def __init__(self, message: str) -> None:
        super().__init__(message, code="invalid_api_key")


class BodyTooLarge(HttpRefusal):
    def __init__(self, max_body_bytes: int) -> None:
        message = f"The request body is larger than this server's limit of {max_body_bytes} bytes."
        super().__init__(message, code="request_too_large")


class ResponseNotFound(HttpRefusal):
    """No response of that id is kept."""

    def __init__(self, response_id: str) -> None:
        message = f"Response with id '{response_id[:256]}' not found; it was never stored, was deleted, or made room."
        super().__init__(message, code="response_not_found")


STATUS: Mapping[type[HeadraceError], int] = {
    UnknownRoute: 404,
    MethodNotAllowed: 405,
    Unauthorized: 401,
    BodyTooLarge: 413,
    UnsupportedMediaType: 415,
    InvalidRequest: 400,
    PromptTooLong: 400,
    UnsupportedByEngine: 400,
    ModelNotFound: 404,
    ResponseNotFound: 404,
    Overloaded: 503,
    EngineUnavailable: 503,
    GenerationFailed: 500,
    UpstreamError: 502,  # a 4xx of the upstream's own is passed on instead, see `status_of`
    UpstreamTimeout: 504,
}

NATIVE_PATHS = frozenset(
    {"/", "/generate", "/generate_stream", "/chat_tokenize", "/vertex", "/invocations", "/info", "/ping"}
)
"""Routes of TGI's native API: what is refused there before an adapter looks at it is refused in their shape."""

MESSAGES_PATH = "/v1/messages"
"""Anthropic's API: its routes, and what is unknown below them."""

MODELS_PATH = "/v1/models"
"""OpenAI's API and Anthropic's: the latter where the client says its version."""

# What an upstream says about the gateway's own credentials or proxy is not the client's doing.
_NOT_THE_CLIENTS = frozenset({401, 403, 407})


def status_of(error: HeadraceError) -> int:
    """The HTTP status of `error`, by its class or the nearest base in the table."""
    if isinstance(error, UpstreamError) and 400 <= error.status < 500 and error.status not in _NOT_THE_CLIENTS:
        return error.status
    return next(STATUS[base] for base in type(error).__mro__ if base in STATUS)


def headers_of(error: HeadraceError) -> dict[str, str]:
    """Headers that belong to the status: Allow and Retry-After (seconds)."""
    if isinstance(error, MethodNotAllowed):
        return {"Allow": error.allowed}
    if isinstance(error, Overloaded):
        return {"Retry-After": str(error.retry_after_s)}
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    return {}


def client_error(error: Exception, request_id: str) -> HeadraceError:
    """What a client may know of `error`: a bug is logged with its traceback and named by the request's id alone."""
    if isinstance(error, HeadraceError):
        return error
    logger.error("request %s failed unexpectedly", request_id, exc_info=error)
    return GenerationFailed(f"Internal server error (request {request_id}).", code="internal_error")


Render = Callable[[HeadraceError, int], bytes]
_STATUS_IN: Mapping[Render, Callable[[HeadraceError, int], int]] = {
    native_error_body: native_status,
    messages_error_body: messages_status,
}
"""Shapes whose protocol has statuses of its own."""


def error_response(error: HeadraceError, render: Render = error_body) -> Response:
    """`render` is an adapter's `error`; by default OpenAI's."""
    status = status_of(error)
    if render in _STATUS_IN:
        status = _STATUS_IN[render](error, status)
    return Response(render(error, status), status, headers_of(error), media_type="application/json")


def _shape_of(request: Request) -> Render:
    """In which shape is refused what no adapter has looked at."""
    path = request.url.path
    if path in NATIVE_PATHS:
        return native_error_body
    anthropic = path.startswith(MESSAGES_PATH) or (path.startswith(MODELS_PATH) and VERSION_HEADER in request.headers)
    return messages_error_body if anthropic else error_body


async def on_headrace_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HeadraceError)
    record_of(request.scope).fail(error)
    return error_response(error, _shape_of(request))


async def on_http_exception(request: Request, error: Exception) -> Response:
    """What Starlette's router raises. OPTIONS on a known path is answered by the methods that it has."""
    assert isinstance(error, HTTPException)
    allowed = (error.headers or {}).get("Allow", "")
    if error.status_code == 405:
        methods = {*allowed.split(", "), "OPTIONS"}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": ", ".join(sorted(methods))})
        return await on_headrace_error(request, MethodNotAllowed(request.method, request.url.path, methods))
    assert error.status_code == 404, "the router raises nothing else"
    return await on_headrace_error(request, UnknownRoute(request.method, request.url.path))
