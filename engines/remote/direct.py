"""An httpx transport for plain HTTP/1.1 to one upstream, made for streams of many small chunks.

httpx's own transport handles every HTTP chunk as an event of its own, in Python, and so carries a third of the chunks.
Here the parser is C (httptools), and what one read brought is one piece. No TLS, no proxies, no redirects, no HTTP/2:
for those httpx's own transport is used. Knows bytes and sockets, nothing of what they mean.

Of httpx's time limits it keeps `connect` and `pool`; its user limits reads and writes.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

import httptools
import httpx

_MAX_BUFFERED_BYTES = 256 * 1024  # per answer, before the upstream is made to wait


class DirectTransport(httpx.AsyncBaseTransport):
    """At most `max_connections` at a time; idle ones are used again for `keepalive_s`."""

    def __init__(self, *, max_connections: int, keepalive_s: float) -> None:
        self._slots = asyncio.Semaphore(max_connections)
        self._keepalive_s = keepalive_s
        self._idle: deque[_Connection] = deque()  # the most recently used last

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        limits: dict[str, float | None] = request.extensions.get("timeout", {})
        body = await request.aread()
        await self._take_slot(limits.get("pool"), request)
        connection: _Connection | None = None
        try:
            connection = self._pop_idle() or await _connect(request, limits.get("connect"))
            connection.send(_head_of(request) + body)
            status, headers = await connection.answer_head()
        except BaseException as error:
            if connection is not None:
                connection.close()
            self._slots.release()
            if isinstance(error, httpx.RequestError):
                error.request = request
            raise
        return httpx.Response(status, headers=headers, stream=_Body(connection, self._give_back))

    async def aclose(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def _take_slot(self, limit_s: float | None, request: httpx.Request) -> None:
        try:
            async with asyncio.timeout(limit_s):
                await self._slots.acquire()
        except TimeoutError:
            raise httpx.PoolTimeout("all connections are in use", request=request) from None

    def _pop_idle(self) -> _Connection | None:
        oldest_s = time.monotonic() - self._keepalive_s
        while self._idle and (self._idle[0].idle_since_s < oldest_s or not self._idle[0].usable):
            self._idle.popleft().close()
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            connection.close()
        return None

    def _give_back(self, connection: _Connection) -> None:
        self._slots.release()
        if connection.usable:
            connection.idle_since_s = time.monotonic()
            self._idle.append(connection)
        else:
            connection.close()


async def _connect(request: httpx.Request, limit_s: float | None) -> _Connection:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(limit_s):
            _, connection = await loop.create_connection(_Connection, request.url.host, request.url.port or 80)
    except TimeoutError:
        raise httpx.ConnectTimeout("connecting took too long", request=request) from None
    except OSError as error:
        raise httpx.ConnectError(str(error), request=request) from error
    return connection


def _head_of(request: httpx.Request) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (request.method.encode("ascii"), request.url.raw_path)]
    lines += [b"%s: %s" % header for header in request.headers.raw]
    return b"\r\n".join([*lines, b"", b""])


class _Body(httpx.AsyncByteStream):
    """Closing it early closes the connection: that is how the upstream learns that nobody listens any more."""

    def __init__(self, connection: _Connection, give_back: Callable[[_Connection], None]) -> None:
        self._connection: _Connection | None = connection
        self._give_back = give_back

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._connection is not None and (piece := await self._connection.piece()) is not None:
            yield piece

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._give_back(connection)


class _Connection(asyncio.Protocol):
    """One request and its answer at a time."""

    def __init__(self) -> None:
        self.idle_since_s = 0.0
        self._transport: asyncio.Transport
        self._changed: asyncio.Future[None] | None = None  # who waits for anything at all to happen
        self._lost: Exception | None = None
        self._paused = False
        self._begin_answer()

    def _begin_answer(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_complete = False
        self._complete = False
        self._keep = False
        self._pieces: list[bytes] = []
        self._num_buffered = 0

    # --- for the transport and the body -------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """For a further request: the answer has arrived to its end, and both sides keep the connection."""
        return self._complete and self._keep and self._lost is None

    def send(self, data: bytes) -> None:
        self._begin_answer()
        self._resume()
        self._transport.write(data)

    async def answer_head(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        while not self._head_complete:
            await self._change()
        return self._parser.get_status_code(), self._headers

    async def piece(self) -> bytes | None:
        """What has arrived since the last piece; None at the end of the answer."""
        while not self._pieces:
            if self._complete:
                return None
            await self._change()
        piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._num_buffered = 0
        self._resume()
        return piece

    def close(self) -> None:
        self._transport.abort()

    def _resume(self) -> None:
        if self._paused and self._lost is None:
            self._paused = False
            self._transport.resume_reading()

    async def _change(self) -> None:
        if self._lost is not None:
            raise self._lost
        self._changed = asyncio.get_running_loop().create_future()
        try:
            await self._changed
        finally:
            self._changed = None

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    # --- asyncio's callbacks ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # pyright: ignore[reportAttributeAccessIssue] (uvloop's are none by inheritance)

    def data_received(self, data: bytes) -> None:
        try:
            if self._complete:
                raise httptools.HttpParserError("more than was asked for")
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._lost = httpx.RemoteProtocolError(f"not HTTP: {error}")
            self._transport.abort()
        else:
            if self._num_buffered >= _MAX_BUFFERED_BYTES and not self._paused:
                self._paused = True
                self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._head_complete and not self._framed() and exc is None:
            self._complete = True  # an answer of no told length ends with its connection
        self._lost = self._lost or httpx.ReadError("the connection was lost" if exc is None else str(exc))
        self._wake()

    def _framed(self) -> bool:
        return any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self._headers)

    # --- the parser's callbacks ---------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._head_complete = self._parser.get_status_code() >= 200  # 1xx come before the answer

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self._num_buffered += len(body)

    def on_message_complete(self) -> None:
        if self._head_complete:
            self._complete = True
            self._keep = self._parser.should_keep_alive()  # only here does the parser still know
        else:
            self._headers = []
