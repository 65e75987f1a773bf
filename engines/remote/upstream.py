"""One pooled HTTP client for one upstream: requests, time limits per phase, and errors in our own words.

Knows URLs, headers and httpx; nothing of prompts or events. Every httpx exception and every error status is translated
here and nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from typing import Any, cast

import httpx
import msgspec

from config.engines import RemoteSettings
from engines.errors import EngineUnavailable, HeadraceError, Overloaded, UpstreamError, UpstreamTimeout
from engines.remote.direct import DirectTransport
from engines.remote.events import error_from
from engines.remote.idle import IdleLimit

_KEEPALIVE_S = 30.0  # shorter than what servers commonly keep an idle connection for
_MAX_ERROR_BYTES = 64 * 1024
_DRAIN_S = 0.25


class Upstream:
    """An OpenAI-compatible server at `settings.upstream`. `transport` stands in for the network in tests."""

    def __init__(self, settings: RemoteSettings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._settings = settings
        self.base_url = str(settings.upstream).rstrip("/")
        self.root_url = self.base_url.removesuffix("/v1")  # where servers keep what is not OpenAI's
        headers = {"Accept-Encoding": "identity", "User-Agent": "headrace"}
        if settings.upstream_api_key is not None:
            headers["Authorization"] = f"Bearer {settings.upstream_api_key.get_secret_value()}"
        self._client = httpx.AsyncClient(
            headers=headers,
            # Reads are limited phase by phase in this file; a pool slot that does not come free means overload.
            timeout=httpx.Timeout(None, connect=settings.connect_timeout_s, pool=settings.connect_timeout_s),
            limits=httpx.Limits(
                max_connections=settings.max_connections,
                max_keepalive_connections=settings.max_connections,
                keepalive_expiry=_KEEPALIVE_S,
            ),
            transport=transport or self._direct_transport(),
        )

    def _direct_transport(self) -> httpx.AsyncBaseTransport | None:
        """Ours for plain HTTP, since it is faster; over TLS httpx's own, which also heeds the environment's proxies."""
        if self._settings.upstream.scheme != "http":
            return None
        return DirectTransport(max_connections=self._settings.max_connections, keepalive_s=_KEEPALIVE_S)

    async def aclose(self) -> None:
        await self._client.aclose()

    @asynccontextmanager
    async def post(self, path: str, body: bytes) -> AsyncGenerator[AsyncGenerator[bytes, None], None]:
        """The body of the answer to a generation, as it arrives; leaving the context early closes the connection.

        Raises UpstreamError for an error status.
        """
        url = self.base_url + path
        request = self._client.build_request("POST", url, content=body, headers={"Content-Type": "application/json"})
        deadline = self._deadline()
        with self._translated():
            async with self._first_byte_limit(deadline):
                response = await self._client.send(request, stream=True)
            try:
                async with aclosing(self._pieces(response, deadline)) as pieces:
                    if response.is_error:
                        raise self.error(response.status_code, b"".join([piece async for piece in pieces]))
                    yield pieces
            finally:
                await response.aclose()

    async def _pieces(self, response: httpx.Response, deadline: float) -> AsyncGenerator[bytes, None]:
        """What each read brought: the first by the deadline, the others within the idle limit."""
        compressed = "content-encoding" in response.headers  # we ask for none, but some proxies insist
        raw = cast(AsyncGenerator[bytes, None], response.aiter_bytes() if compressed else response.aiter_raw())
        async with aclosing(raw):
            async with self._first_byte_limit(deadline):
                piece = await anext(raw, None)
            limit_s = self._settings.idle_timeout_s
            idle_limit = IdleLimit(limit_s)
            try:
                while piece is not None:
                    yield piece
                    with idle_limit:
                        piece = await anext(raw, None)
            except TimeoutError:
                raise UpstreamTimeout(f"The upstream sent nothing for {limit_s:g} s (idle_timeout_s).") from None
            finally:
                idle_limit.close()

    async def get(self, url: str) -> httpx.Response:
        """A small answer of any status, read whole."""
        with self._translated():
            async with self._first_byte_limit(self._deadline()):
                return await self._client.get(url)

    async def post_json(self, url: str, body: dict[str, Any]) -> httpx.Response:
        """The same for a POST."""
        content = msgspec.json.encode(body)
        with self._translated():
            async with self._first_byte_limit(self._deadline()):
                return await self._client.post(url, content=content, headers={"Content-Type": "application/json"})

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._settings.first_byte_timeout_s

    @asynccontextmanager
    async def _first_byte_limit(self, deadline: float) -> AsyncGenerator[None, None]:
        try:
            async with asyncio.timeout_at(deadline):
                yield
        except TimeoutError:
            limit_s = self._settings.first_byte_timeout_s
            raise UpstreamTimeout(
                f"The upstream did not begin to answer within {limit_s:g} s (first_byte_timeout_s)."
            ) from None

    @contextmanager
    def _translated(self) -> Generator[None, None, None]:
        settings = self._settings
        try:
            yield
        except httpx.PoolTimeout as error:
            raise Overloaded(
                f"All {settings.max_connections} connections to the upstream are in use (max_connections)."
            ) from error
        except httpx.ConnectTimeout as error:
            raise UpstreamTimeout(
                f"The upstream could not be reached within {settings.connect_timeout_s:g} s (connect_timeout_s)."
            ) from error
        except httpx.ConnectError as error:
            raise EngineUnavailable("The upstream cannot be reached.") from error
        except httpx.HTTPError as error:
            raise UpstreamError(f"The connection to the upstream broke ({type(error).__name__}).") from error

    def error(self, status: int, body: bytes) -> UpstreamError:
        """An error answer in OpenAI's shape, or in the shapes of others, or in none."""
        if status in (401, 403):  # its message may hold a part of our key
            return UpstreamError(f"The upstream refused the gateway's own credentials ({status}).", status=status)
        try:
            fields: Any = msgspec.json.decode(body[:_MAX_ERROR_BYTES])
        except msgspec.DecodeError:
            fields = None
        if not isinstance(fields, dict):
            return UpstreamError(f"The upstream answered with status {status}.", status=status)
        named = cast("dict[str, Any]", fields)
        return error_from(named.get("error") or named.get("detail") or named, status)


async def drain(rest: AsyncGenerator[Any, None]) -> None:
    """Read to the end of an answer that has said all it had to, so that its connection can be used again."""
    with suppress(TimeoutError, HeadraceError, httpx.HTTPError):
        async with asyncio.timeout(_DRAIN_S):
            async for _ in rest:
                pass
