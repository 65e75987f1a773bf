"""The routes of /v1/responses/{id}: what is kept of an answer. Making answers is `endpoints.Generate`'s."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from adapters.openai_responses_store import (
    ResponseStore,
    StoredResponse,
    deleted_body,
    item_list_body,
    item_page,
)
from adapters.wire import refuse
from gateway.endpoints import JSON, Handler
from gateway.errors import ResponseNotFound

_NO_EFFECT = frozenset({"include", "include[]", "include_obfuscation"})  # an answer is told as it was made


def _stored(store: ResponseStore, request: Request) -> StoredResponse:
    response_id: str = request.path_params["response_id"]
    stored = store.get(response_id)
    if stored is None:
        raise ResponseNotFound(response_id)
    return stored


def stored_response(store: ResponseStore) -> Handler:
    """GET and DELETE /v1/responses/{response_id}"""

    async def answer(request: Request) -> Response:
        if request.method == "DELETE":
            deleted = _stored(store, request).id
            store.delete(deleted)
            return Response(deleted_body(deleted), media_type=JSON)
        for name, value in request.query_params.items():
            if name not in _NO_EFFECT and (name, value) != ("stream", "false"):
                refuse(name, "stored responses are told whole; this parameter is not supported")
        return Response(_stored(store, request).response, media_type=JSON)

    return answer


def cancel(store: ResponseStore) -> Handler:
    """POST /v1/responses/{response_id}/cancel: only what is made in the background could be, and nothing is."""

    async def answer(request: Request) -> Response:
        _stored(store, request)
        refuse("response_id", "only responses made in the background can be cancelled; close the connection instead")

    return answer


def input_items(store: ResponseStore) -> Handler:
    """GET /v1/responses/{response_id}/input_items"""

    async def answer(request: Request) -> Response:
        query = {name: value for name, value in request.query_params.items() if name not in _NO_EFFECT}
        return Response(item_list_body(_stored(store, request), item_page(query)), media_type=JSON)

    return answer
