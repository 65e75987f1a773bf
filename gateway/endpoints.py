"""What each route does: parse, resolve the model, answer whole or stream. Protocols are the adapters' business."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from adapters.adapter import Adapter, Exchange
from adapters.anthropic_messages import count_body, parse_count
from adapters.anthropic_models import VERSION_HEADER, model_info_body, model_page_body
from adapters.openai_models import model_body, model_list_body
from adapters.tokenize import detokenize_body, parse_detokenize, parse_tokenize, tokenize_body
from adapters.watermark import detect_body, parse_detect
from engines.api import Engine, Health
from engines.errors import HeadraceError
from gateway.catalog import Catalog
from gateway.docs_page import docs_page
from gateway.errors import client_error, error_response
from gateway.metrics import CONTENT_TYPE, Metrics
from gateway.openapi import openapi_body
from gateway.permits import Permits
from gateway.record import record_of
from gateway.streaming import ClientLeft, answer_stream, answer_whole
from gateway.timing import told_after, told_before

HEALTH_TIMEOUT_S = 5.0

JSON = "application/json"

Handler = Callable[[Request], Awaitable[Response]]


class Generate:
    """POST of a protocol that generates. An ASGI application itself, so that nothing wraps its stream.

    `compute_type`: TGI's headers go with answers, and this is what theirs of that name says.
    """

    def __init__(
        self, adapter: Adapter, catalog: Catalog, permits: Permits, *, compute_type: str | None = None
    ) -> None:
        self._adapter = adapter
        self._catalog = catalog
        self._permits = permits
        self._compute_type = compute_type

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.generates = True
        try:
            body = await read_body(receive)
            with self._permits.taken():
                exchange = self._adapter.parse(body, Headers(scope=scope), record.unique_id)
                record.parsed_at = time.perf_counter()
                served = self._catalog.resolve(exchange.requests[0].model)
                record.model = served.card.name
                record.max_new_tokens = max_new_tokens(exchange)
                headers = {} if self._compute_type is None else told_before(exchange, self._compute_type)
                if exchange.stream:
                    await answer_stream(exchange, served.engine, record, receive, send, headers)
                    return
                answer = await answer_whole(exchange, served.engine, record, receive)
                if self._compute_type is not None:
                    headers |= told_after(record)
                response = Response(answer, headers=headers, media_type=JSON)
        except ClientLeft:
            record.drop()
            return
        except Exception as error:
            if record.status:  # answer_stream says whatever it can in-band, so this is a bug past that
                raise
            refusal = client_error(error, record.id)
            record.fail(refusal)
            response = error_response(refusal, self._adapter.error)
        await response(scope, receive, send)


def max_new_tokens(exchange: Exchange) -> int | None:
    """The most that any of its requests asks for, None where one leaves it to the engine."""
    asked = [request.sampling.max_tokens for request in exchange.requests]
    known = [count for count in asked if count is not None]
    return max(known) if known and len(known) == len(asked) else None


async def read_body(receive: Receive) -> bytes:
    chunks: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)


async def tokenize_answer(catalog: Catalog, body: bytes) -> Response:
    """POST /tokenize in vLLM's shape."""
    call = parse_tokenize(body)
    served = catalog.resolve(call.model)
    tokenized = await served.engine.tokenize(served.card.name, call.prompt, with_texts=call.with_texts)
    return Response(tokenize_body(tokenized, with_texts=call.with_texts), media_type=JSON)


def count_tokens(catalog: Catalog) -> Handler:
    """POST /v1/messages/count_tokens"""

    async def answer(request: Request) -> Response:
        call = parse_count(await read_body(request.receive))
        served = catalog.resolve(call.model)
        return Response(count_body(await served.engine.tokenize(served.card.name, call.prompt)), media_type=JSON)

    return answer


def detokenize(catalog: Catalog) -> Handler:
    async def answer(request: Request) -> Response:
        call = parse_detokenize(await read_body(request.receive))
        served = catalog.resolve(call.model)
        text = await served.engine.detokenize(served.card.name, call.token_ids)
        return Response(detokenize_body(text), media_type=JSON)

    return answer


def detect_watermark(catalog: Catalog) -> Handler:
    async def answer(request: Request) -> Response:
        call = parse_detect(await read_body(request.receive))
        served = catalog.resolve(call.model)
        report = await served.engine.detect_watermark(served.card.name, call.content, call.watermark)
        return Response(detect_body(report, served.card.name, call), media_type=JSON)

    return answer


def list_models(catalog: Catalog) -> Handler:
    """GET /v1/models, in the shape of whose API the client speaks."""

    async def models(request: Request) -> Response:
        cards = catalog.cards()
        if VERSION_HEADER in request.headers:
            return Response(model_page_body(cards, request.query_params.multi_items()), media_type=JSON)
        return Response(model_list_body(cards), media_type=JSON)

    return models


def retrieve_model(catalog: Catalog) -> Handler:
    async def model(request: Request) -> Response:
        name: str = request.path_params["model"]
        body = model_info_body if VERSION_HEADER in request.headers else model_body
        return Response(body(catalog.resolve(name).card, name), media_type=JSON)

    return model


def live() -> Handler:
    """GET /health/live: this process answers, whatever its engines do."""

    async def answer(_: Request) -> Response:
        return Response()

    return answer


def health(catalog: Catalog) -> Handler:
    """GET /health: ready or not, without a body to read where all is well."""
    report = ready(catalog)

    async def answer(request: Request) -> Response:
        full = await report(request)
        return Response() if full.status_code == 200 else full

    return answer


def ready(catalog: Catalog) -> Handler:
    """GET /health/ready: 200 when every engine is able to answer, else 503, and how each of them is."""

    async def report(_: Request) -> Response:
        states = await asyncio.gather(*(_state(engine) for engine in catalog.engines))
        ok = all(state.ok for state in states)
        engines = [
            {"models": [card.name for card in engine.models], "ok": state.ok, "detail": state.detail}
            for engine, state in zip(catalog.engines, states, strict=True)
        ]
        if ok:
            return JSONResponse({"status": "ok", "engines": engines})
        # The last two are what TGI's clients read.
        words = {"status": "unhealthy", "engines": engines, "error": "unhealthy", "error_type": "healthcheck"}
        return JSONResponse(words, 503)

    return report


async def _state(engine: Engine) -> Health:
    """An engine that does not say how it is, is not well."""
    try:
        async with asyncio.timeout(HEALTH_TIMEOUT_S):
            return await engine.health()
    except TimeoutError:
        return Health(False, f"no answer within {HEALTH_TIMEOUT_S:g} s")
    except HeadraceError as error:
        return Health(False, error.message)


def prometheus(metrics: Metrics) -> Handler:
    async def scrape(_: Request) -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE)

    return scrape


def version(installed: str) -> Handler:
    async def answer(_: Request) -> Response:
        return JSONResponse({"version": installed})

    return answer


def docs(installed: str) -> Handler:
    async def page(_: Request) -> Response:
        return Response(docs_page(installed), media_type="text/html; charset=utf-8")

    return page


def openapi(installed: str) -> Handler:
    async def document(_: Request) -> Response:
        return Response(openapi_body(installed), media_type=JSON)

    return document
