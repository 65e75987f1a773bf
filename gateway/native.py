"""The routes of TGI's native API, where they behave unlike OpenAI's. Shapes are the adapters' business.

A streamed request is always answered with 200: what is wrong with it, from the first byte of its body on, is an event.
"""

from __future__ import annotations

import time
from typing import Literal

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adapters.adapter import Adapter, Exchange
from adapters.raw_json import says_stream
from adapters.tgi_errors import native_error_body, native_error_frame
from adapters.tgi_info import info_body
from adapters.tgi_tokenize import (
    chat_tokenize_body,
    is_native_tokenize,
    native_tokenize_body,
    parse_chat_tokenize,
    parse_native_tokenize,
)
from adapters.tgi_types import NativeLimits
from engines.errors import HeadraceError
from gateway.catalog import Catalog
from gateway.endpoints import JSON, Handler, max_new_tokens, read_body, tokenize_answer
from gateway.errors import client_error, error_response
from gateway.permits import Permits
from gateway.record import RequestRecord, record_of
from gateway.streaming import ClientLeft, answer_stream, answer_whole, stream_start
from gateway.timing import told_after, told_before


class GenerateNative:
    """POST of a native route that generates. `streams`: whether a request may ask for a stream or can get no other."""

    def __init__(
        self,
        adapter: Adapter,
        catalog: Catalog,
        permits: Permits,
        *,
        compute_type: str,
        streams: Literal["never", "asked", "always"],
    ) -> None:
        self._adapter = adapter
        self._catalog = catalog
        self._permits = permits
        self._compute_type = compute_type
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.generates = True
        body = b""
        try:
            body = await read_body(receive)
            with self._permits.taken():
                exchange = self._adapter.parse(body, Headers(scope=scope), record.unique_id)
                record.parsed_at = time.perf_counter()
                await self._answer(exchange, record, scope, receive, send)
        except ClientLeft:
            record.drop()
        except Exception as error:
            if record.status:
                raise
            refusal = client_error(error, record.id)
            record.fail(refusal)
            if self._streams == "always" or (self._streams == "asked" and says_stream(body)):
                await _stream_refusal(refusal, send)
            else:
                await error_response(refusal, native_error_body)(scope, receive, send)

    async def _answer(
        self, exchange: Exchange, record: RequestRecord, scope: Scope, receive: Receive, send: Send
    ) -> None:
        served = self._catalog.resolve(exchange.requests[0].model)
        record.model = served.card.name
        record.max_new_tokens = max_new_tokens(exchange)
        headers = told_before(exchange, self._compute_type)
        if exchange.stream:
            await answer_stream(exchange, served.engine, record, receive, send, headers)
            return
        body = await answer_whole(exchange, served.engine, record, receive)
        await Response(body, headers=headers | told_after(record), media_type=JSON)(scope, receive, send)


async def _stream_refusal(refusal: HeadraceError, send: Send) -> None:
    await send(stream_start())
    await send({"type": "http.response.body", "body": native_error_frame(refusal)})


def tokenize(catalog: Catalog) -> Handler:
    """POST /tokenize, in TGI's shape where the body has `inputs`, refusals included, and in vLLM's otherwise."""

    async def answer(request: Request) -> Response:
        body = await read_body(request.receive)
        if not is_native_tokenize(body):
            return await tokenize_answer(catalog, body)
        try:
            call = parse_native_tokenize(body)
            served = catalog.resolve(call.model)
            tokenized = await served.engine.tokenize(served.card.name, call.prompt, with_texts=True)
        except HeadraceError as error:
            record_of(request.scope).fail(error)
            return error_response(error, native_error_body)
        return Response(native_tokenize_body(tokenized), media_type=JSON)

    return answer


def chat_tokenize(catalog: Catalog) -> Handler:
    async def answer(request: Request) -> Response:
        call = parse_chat_tokenize(await read_body(request.receive), catalog.default_name)
        served = catalog.resolve(call.model)
        tokenized = await served.engine.tokenize(served.card.name, call.prompt, with_texts=True)
        return Response(chat_tokenize_body(tokenized), media_type=JSON)

    return answer


def info(catalog: Catalog, limits: NativeLimits, permits: Permits, version: str) -> Handler:
    async def answer(_: Request) -> Response:
        card = catalog.resolve(None).card
        return Response(info_body(card, limits, permits.limit, version), media_type=JSON)

    return answer
