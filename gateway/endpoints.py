"""What each route does: parse, resolve the model, answer whole or stream. Protocols are the adapters' business."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from adapters.adapter import Adapter
from adapters.openai_models import model_body, model_list_body
from adapters.tokenize import detokenize_body, parse_detokenize, parse_tokenize, tokenize_body
from adapters.watermark import detect_body, parse_detect
from engines.api import Engine, Health
from engines.errors import HeadraceError
from gateway.catalog import Catalog
from gateway.errors import client_error, error_response
from gateway.metrics import CONTENT_TYPE, Metrics
from gateway.openapi import openapi_body
from gateway.record import record_of
from gateway.streaming import ClientLeft, answer_stream, answer_whole

HEALTH_TIMEOUT_S = 5.0

JSON = "application/json"

Handler = Callable[[Request], Awaitable[Response]]


class Generate:
    """POST of a protocol that generates. An ASGI application itself, so that nothing wraps its stream."""

    def __init__(self, adapter: Adapter, catalog: Catalog) -> None:
        self._adapter = adapter
        self._catalog = catalog

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        try:
            body = await read_body(receive)
            exchange = self._adapter.parse(body, Headers(scope=scope), record.unique_id)
            served = self._catalog.resolve(exchange.requests[0].model)
            record.model = served.card.name
            if exchange.stream:
                await answer_stream(exchange, served.engine, record, receive, send)
                return
            response = Response(await answer_whole(exchange, served.engine, record, receive), media_type=JSON)
        except ClientLeft:
            record.error = "The client left."
            return
        except Exception as error:
            if record.status:  # answer_stream says whatever it can in-band, so this is a bug past that
                raise
            refusal = client_error(error, record.id)
            record.error = refusal.message
            response = error_response(refusal, self._adapter.error)
        await response(scope, receive, send)


async def read_body(receive: Receive) -> bytes:
    chunks: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)


def tokenize(catalog: Catalog) -> Handler:
    async def answer(request: Request) -> Response:
        call = parse_tokenize(await read_body(request.receive))
        served = catalog.resolve(call.model)
        tokenized = await served.engine.tokenize(served.card.name, call.prompt, with_texts=call.with_texts)
        return Response(tokenize_body(tokenized, with_texts=call.with_texts), media_type=JSON)

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
    async def models(_: Request) -> Response:
        return Response(model_list_body(catalog.cards()), media_type=JSON)

    return models


def retrieve_model(catalog: Catalog) -> Handler:
    async def model(request: Request) -> Response:
        name: str = request.path_params["model"]
        return Response(model_body(catalog.resolve(name).card, name), media_type=JSON)

    return model


def health(catalog: Catalog) -> Handler:
    async def report(_: Request) -> Response:
        """200 when every engine is able to answer, else 503 with what is wrong."""
        states = await asyncio.gather(*(_state(engine) for engine in catalog.engines))
        ok = all(state.ok for state in states)
        engines = [
            {"models": [card.name for card in engine.models], "ok": state.ok, "detail": state.detail}
            for engine, state in zip(catalog.engines, states, strict=True)
        ]
        return JSONResponse({"status": "ok" if ok else "unhealthy", "engines": engines}, 200 if ok else 503)

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


def openapi(installed: str) -> Handler:
    async def document(_: Request) -> Response:
        return Response(openapi_body(installed), media_type=JSON)

    return document
