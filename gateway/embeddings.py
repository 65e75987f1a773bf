"""POST /v1/embeddings: parse, resolve the model, ask its engine for vectors. What they look like is the adapter's."""

from __future__ import annotations

import asyncio
import time

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adapters.openai_embeddings import embeddings_body, parse_embeddings
from adapters.raw_json import with_model
from gateway.catalog import Catalog
from gateway.endpoints import JSON, read_body
from gateway.errors import client_error, error_response
from gateway.permits import Permits
from gateway.record import RequestRecord, record_of
from gateway.streaming import ClientLeft, while_connected

_PIECES_AT_ONCE = 32  # a few milliseconds' work


class Embed:
    """An ASGI application itself, so that a client that leaves is noticed: its call is cancelled then."""

    def __init__(self, catalog: Catalog, permits: Permits) -> None:
        self._catalog = catalog
        self._permits = permits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        try:
            body = await read_body(receive)
            with self._permits.taken():
                response = Response(await self._answer(body, record, receive), media_type=JSON)
        except ClientLeft:
            record.drop()
            return
        except Exception as error:
            refusal = client_error(error, record.id)
            record.fail(refusal)
            response = error_response(refusal)
        await response(scope, receive, send)

    async def _answer(self, body: bytes, record: RequestRecord, receive: Receive) -> bytes:
        if self._catalog.any_model:
            body = with_model(body, self._catalog.default_name)
        call = parse_embeddings(body, record.unique_id)
        record.parsed_at = time.perf_counter()
        served = self._catalog.resolve(call.request.model)
        record.model = served.card.name
        async with while_connected(receive) as (tasks, _):
            embeddings = await tasks.create_task(served.engine.embed(call.request))
        record.count_prompt(embeddings.prompt_tokens)
        pieces: list[bytes] = []
        for piece in embeddings_body(embeddings, call):
            pieces.append(piece)
            if len(pieces) % _PIECES_AT_ONCE == 0:
                await asyncio.sleep(0)  # other requests' streams go on meanwhile
        return b"".join(pieces)
