"""Around every request: its id, its line in the access log, its metrics, and the last resort for a bug.

Pure ASGI. The layers inside write what they learn (model, tokens, first token) into the request's `RequestRecord`;
a token costs nothing here but one plain function call. Logging is configured by whoever starts the process.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import client_error, error_response
from gateway.metrics import Metrics
from gateway.record import CLIENT_LEFT, RequestRecord, open_record

access_logger = logging.getLogger("headrace.access")

_PROBES = frozenset({"/health", "/health/live", "/health/ready", "/ping", "/metrics"})


class Telemetry:
    """`routes` names the route of an endpoint for the metrics' label, so that labels never hold what a client sent."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, routes: Mapping[object, str]) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = open_record(scope)
        id_header = (b"x-request-id", record.id.encode("ascii"))

        def send_with_id(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), id_header]}
            return send(message)

        self._metrics.opened()
        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            refusal = client_error(error, record.id)
            record.fail(refusal)
            if record.status == 0:
                await error_response(refusal)(scope, receive, send_with_id)
            # else the server closes the connection, for the answer is not complete
        finally:
            record.status = record.status or CLIENT_LEFT
            self._metrics.closed(record, self._routes.get(scope.get("endpoint"), "other"))
            _log_access(scope, record)


def _log_access(scope: Scope, record: RequestRecord) -> None:
    level = logging.DEBUG if scope["path"] in _PROBES else logging.INFO
    if not access_logger.isEnabledFor(level):
        return
    now = time.perf_counter()
    line: dict[str, object] = {
        "request_id": record.id,
        "client": (scope.get("client") or ("",))[0],
        "method": scope["method"],
        "path": scope["path"],
        "status": record.status,
        "duration_ms": round((now - record.started_at) * 1e3, 1),
    }
    if record.model:
        line["model"] = record.model
        line["prompt_tokens"] = record.prompt_tokens
        line["completion_tokens"] = record.completion_tokens
    if record.first_token_at is not None:
        line["first_token_ms"] = round((record.first_token_at - record.started_at) * 1e3, 1)
    if record.error:
        line["error"] = record.error
    access_logger.log(level, "%s", json.dumps(line, ensure_ascii=False))
