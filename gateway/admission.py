"""Whether a request's body may come in, by its key, its headers and its size. Pure ASGI, around routes that read.

A body that declares its length is refused before a byte is read; one that does not (chunked) when it grows too large.
"""

from __future__ import annotations

from collections.abc import Mapping
from hmac import compare_digest

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import BodyTooLarge, Unauthorized, UnsupportedMediaType


class Admission:
    """`api_key` None: anybody may. `has_body` False: for routes that read none, of which only the key is checked."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, api_key: str | None = None, has_body: bool = True) -> None:
        self._app = app
        self._api_key = api_key
        self._max_body_bytes = max_body_bytes
        self._has_body = has_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises HttpRefusal, also out of `receive` while the body is read."""
        headers = Headers(scope=scope)
        if self._api_key is not None:
            _check_key(headers, self._api_key)
        if not self._has_body:
            await self._app(scope, receive, send)
            return
        _check_media_type(headers)
        if _declared_bytes(headers) > self._max_body_bytes:
            raise BodyTooLarge(self._max_body_bytes)
        num_bytes = 0

        async def receive_limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body_bytes:
                raise BodyTooLarge(self._max_body_bytes)
            return message

        await self._app(scope, receive_limited, send)


def _check_key(headers: Mapping[str, str], api_key: str) -> None:
    """OpenAI's clients send a bearer token, Anthropic's x-api-key. Takes as long for a wrong key as for a right one."""
    bearer = compare_digest(headers.get("authorization", "").encode("latin-1"), f"Bearer {api_key}".encode())
    plain = compare_digest(headers.get("x-api-key", "").encode("latin-1"), api_key.encode())
    if not (bearer or plain):
        raise Unauthorized(
            "This server wants its API key: send the header Authorization: Bearer KEY, or x-api-key: KEY."
        )


def _check_media_type(headers: Mapping[str, str]) -> None:
    """JSON must be declared: a browser sends anything else to another site without asking that site first."""
    media_type = headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        sent = f"'{media_type[:100]}'" if media_type else "none"
        raise UnsupportedMediaType(f"Content-Type must be application/json; this request has {sent}.")
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaType(f"Content-Encoding must be identity; this request has '{encoding[:100]}'.")


def _declared_bytes(headers: Mapping[str, str]) -> int:
    length = headers.get("content-length", "")
    return int(length[:18]) if length.isascii() and length.isdecimal() else 0  # 18 digits exceed any limit
