"""uvicorn as we run it: answering only once the engines are ready, and ending without losing a stream.

Knows an application, a socket and the server's settings; no engine by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import signal
import socket
from collections.abc import Callable, Generator, Sequence

import uvicorn
from starlette.applications import Starlette

from config.server import ServerSection
from gateway.cli.handover import handed_over

_BACKLOG = 4096
_KEEP_ALIVE_S = 75  # longer than clients keep idle connections, so that they close first and never race us


class _Uvicorn(uvicorn.Server):
    """Leaves signals to `run_app`, says when it is ready, and can be handed connections instead of listening."""

    def __init__(
        self, config: uvicorn.Config, on_ready: Callable[[], None], channel: socket.socket | None = None
    ) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._channel = channel
        self._adopting: set[asyncio.Task[object]] = set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._channel is None:
            await super().startup(sockets)
        else:
            self.servers = []
            self.started = True
            asyncio.get_running_loop().add_reader(self._channel.fileno(), self._adopt)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._channel is not None:
            self._adopt()  # what was handed over before the end is still served
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            await asyncio.gather(*self._adopting, return_exceptions=True)
        await super().shutdown(sockets)

    def _adopt(self) -> None:
        assert self._channel is not None
        loop = asyncio.get_running_loop()
        for connection in handed_over(self._channel):
            task = loop.create_task(loop.connect_accepted_socket(self._protocol, connection))
            self._adopting.add(task)
            task.add_done_callback(self._adopting.discard)

    def _protocol(self) -> asyncio.Protocol:
        """As uvicorn's own listeners make one."""
        make = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state={})  # pyright: ignore[reportCallIssue]


async def run_app(
    app: Starlette,
    source: socket.socket,
    server: ServerSection,
    *,
    handed: bool = False,
    on_ready: Callable[[], None],
    on_stopping: Callable[[], None] = lambda: None,
    stop_signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
    stop: asyncio.Task[None] | None = None,
) -> None:
    """Start the application's engines, serve until a stop signal or the end of `stop`, stop the engines.

    `source` is a bound socket to listen on or, with `handed`, the channel over which connections come. The first signal
    lets open requests finish for `shutdown_timeout_s`; a second one ends at once. A signal during start-up cancels it
    (CancelledError). Errors of the engines' start come out as they are.
    """
    uvicorn_server = _Uvicorn(_config(app, server), on_ready, source if handed else None)
    starting = asyncio.current_task()
    assert starting is not None

    def end() -> None:
        if not uvicorn_server.started:
            starting.cancel()
        elif uvicorn_server.should_exit:
            uvicorn_server.force_exit = True
        else:
            uvicorn_server.should_exit = True
            on_stopping()

    loop = asyncio.get_running_loop()
    for number in stop_signals:
        loop.add_signal_handler(number, end)
    if stop is not None:
        stop.add_done_callback(lambda _: end())
    try:
        async with app.router.lifespan_context(app):
            gc.collect()
            gc.freeze()  # what exists now lives as long as the process: the collector need not look at it again
            await uvicorn_server.serve(sockets=None if handed else [source])
    finally:
        for number in stop_signals:
            loop.remove_signal_handler(number)


def _config(app: Starlette, server: ServerSection) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",  # run_app runs it, so that its errors arrive as exceptions
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(server.shutdown_timeout_s),
    )
