"""Engine events to HTTP answers: whole, or as server-sent events.

One pump per request of the exchange iterates an engine and leaves frames in a `_Relay`; one writer empties it. So list
prompts run side by side, a client that reads slowly holds its engines back instead of filling memory, and frames that
arrive while a write waits leave in one write. Nothing is sent before the first event: until then every error is an
ordinary answer with its status; afterwards it travels in-band.

A client that leaves cancels the pumps wherever they wait, which closes their generators: the one path of cancellation.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import NamedTuple

from starlette.types import Message, Receive, Send

from adapters.adapter import Collected, Exchange
from adapters.collect import Collector
from engines.api import Done, Engine, GenerationRequest
from engines.errors import GenerationFailed, HeadraceError
from gateway.errors import client_error, status_of
from gateway.record import RequestRecord

MAX_RELAYED_BYTES = 65536  # frames waiting for a slow client, per exchange; the socket's own buffer comes on top

KEEP_ALIVE_S = 15.0  # longest silence of a stream, also before its first event
_EMPTY_LINE = b"\n"  # an event of nothing, which clients skip and proxies take for a sign of life
# Comments, meant for this, are unknown to clients that look for `data:` alone: some count such a stream as broken.

_NO_HEADERS: Mapping[str, str] = {}


def stream_start(headers: Mapping[str, str] = _NO_HEADERS) -> Message:
    """What begins a stream, with `headers` beside a stream's own."""
    return {
        "type": "http.response.start",
        "status": 200,
        "headers": [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            *((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()),
        ],
    }


class ClientLeft(Exception):
    """The client closed the connection before its answer was complete."""


async def answer_whole(exchange: Exchange, engine: Engine, record: RequestRecord, receive: Receive) -> bytes:
    """The body of the whole answer. Raises the first HeadraceError of any request, or ClientLeft."""
    async with while_connected(receive) as (tasks, _):
        collecting = [tasks.create_task(_collect(engine, request, record)) for request in exchange.requests]
        collected = [await task for task in collecting]
    return exchange.response(collected)


async def answer_stream(
    exchange: Exchange,
    engine: Engine,
    record: RequestRecord,
    receive: Receive,
    send: Send,
    headers: Mapping[str, str] = _NO_HEADERS,
) -> None:
    """Sends the stream, with `headers` beside its own. Raises HeadraceError before anything was sent, or ClientLeft.

    A stream that has nothing to say for KEEP_ALIVE_S says so; if that is before its first event, it is a 200 from then.
    """
    relay = _Relay(len(exchange.requests))
    async with while_connected(receive) as (tasks, watcher):
        pumps = [tasks.create_task(_pump(exchange, i, engine, relay, record)) for i in range(len(exchange.requests))]
        # A task of its own, for it wakes once per write and from here every wake-up would climb the middleware stack.
        writer = tasks.create_task(_write(exchange, relay, record, watcher, send, headers))
        with _heartbeat(relay):
            await asyncio.wait([writer])
        if relay.error is not None:
            for pump in pumps:
                pump.cancel()


class Connected(NamedTuple):
    tasks: asyncio.TaskGroup
    watcher: asyncio.Task[None]


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncGenerator[Connected, None]:
    """Tasks that are cancelled, together with the body, when the client leaves: then ClientLeft is raised.

    The first exception of any task is raised as it is, after all others have ended.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            watcher = tasks.create_task(_watch(receive))
            yield Connected(tasks, watcher)
            watcher.cancel()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


async def _watch(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientLeft


async def _collect(engine: Engine, request: GenerationRequest, record: RequestRecord) -> Collected:
    collector = Collector(request)
    async with aclosing(engine.generate(request)) as events:
        async for event in events:
            record.add(event)
            collector.add(event)
    return collector.result()


class _Relay:
    """Frames on their way from the pumps to the writer, in order of arrival, and how the pumps fared."""

    __slots__ = ("_frames", "_full", "_loop", "_num_bytes", "_num_pumps", "_room", "error", "news", "num_taken")

    def __init__(self, num_pumps: int) -> None:
        self.error: HeadraceError | None = None  # the first one; it ends the stream
        self.num_taken = 0  # times that the writer took what there was
        self._frames: list[bytes] = []
        self._num_pumps = num_pumps
        self._num_bytes = 0
        self._full = False
        self._room = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.news = self._loop.create_future()  # for the writer to await before every `take`

    @property
    def finished(self) -> bool:
        return self._num_pumps == 0

    @property
    def is_empty(self) -> bool:
        return not self._frames

    def put(self, frame: bytes) -> bool:
        """False: await `room` before the next one. An empty frame says that its request was accepted."""
        self._frames.append(frame)
        self._num_bytes += len(frame)
        if not self.news.done():
            self.news.set_result(None)
        return self._num_bytes < MAX_RELAYED_BYTES

    async def room(self) -> None:
        self._full = True
        self._room.clear()
        await self._room.wait()

    def end(self, error: HeadraceError | None = None) -> None:
        self._num_pumps -= 1
        self.error = self.error or error
        if not self.news.done():
            self.news.set_result(None)

    def take(self) -> bytes:
        taken = b"".join(self._frames)
        self._frames.clear()
        self._num_bytes = 0
        self.num_taken += 1
        if self._full:
            self._full = False
            self._room.set()
        self.news = self._loop.create_future()
        return taken


@contextmanager
def _heartbeat(relay: _Relay) -> Generator[None, None, None]:
    """An empty line into every silence: one timer for the whole stream, so that frames cost nothing more."""
    loop = asyncio.get_running_loop()
    seen = -1

    def beat() -> None:
        nonlocal seen, timer
        if relay.num_taken == seen and relay.is_empty:
            relay.put(_EMPTY_LINE)
        seen = relay.num_taken
        timer = loop.call_later(KEEP_ALIVE_S / 2, beat)

    timer = loop.call_later(KEEP_ALIVE_S / 2, beat)
    try:
        yield
    finally:
        timer.cancel()


async def _pump(exchange: Exchange, index: int, engine: Engine, relay: _Relay, record: RequestRecord) -> None:
    """Never raises but when cancelled: the writer says what went wrong, after the frames before it."""
    done = False
    failure: HeadraceError = GenerationFailed("The engine stopped before the answer was complete.")
    try:
        async with aclosing(engine.generate(exchange.requests[index])) as events:
            async for event in events:
                record.add(event)
                has_room = relay.put(exchange.frame(index, event))
                if isinstance(event, Done):
                    done = True
                    relay.end()  # the client need not wait for the engine to clean up
                    return
                if not has_room:
                    await relay.room()
    except Exception as error:
        failure = client_error(error, record.id)
    finally:
        if not done:
            relay.end(failure)


async def _write(
    exchange: Exchange,
    relay: _Relay,
    record: RequestRecord,
    watcher: asyncio.Task[None],
    send: Send,
    headers: Mapping[str, str],
) -> None:
    await relay.news
    if relay.error is not None:
        raise relay.error  # nothing was sent, so it is an ordinary answer even if another prompt was accepted
    await send(stream_start(headers))
    while True:
        body, last = relay.take(), False
        if relay.error is not None:
            record.fail(relay.error)
            body, last = body + exchange.stream_error(relay.error, status_of(relay.error)), True
        elif relay.finished:
            body, last = body + exchange.end(), True
        if last:
            watcher.cancel()  # servers say "disconnect" after a complete answer, too
        if body or last:
            await send({"type": "http.response.body", "body": body, "more_body": not last})
        if last:
            return
        await relay.news
