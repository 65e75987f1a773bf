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
    """`api_key` None: anybody may."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, api_key: str | None = None) -> None:
        self._app = app
        self._bearer = None if api_key is None else f"Bearer {api_key}".encode()
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises HttpRefusal, also out of `receive` while the body is read."""
        headers = Headers(scope=scope)
        if self._bearer is not None:
            _check_key(headers.get("authorization", ""), self._bearer)
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


def _check_key(sent: str, bearer: bytes) -> None:
    """Takes as long for a wrong key as for a nearly right one."""
    if not compare_digest(sent.encode("latin-1"), bearer):
        raise Unauthorized("This server wants its API key: send the header Authorization: Bearer KEY.")


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
