"""uvicorn as we run it: on a bound socket, listening only once the engines are ready, ending without losing a stream.

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

_BACKLOG = 4096
_KEEP_ALIVE_S = 75  # longer than clients keep idle connections, so that they close first and never race us


class _Uvicorn(uvicorn.Server):
    """Leaves signals to `run_app`, and says when it listens."""

    def __init__(self, config: uvicorn.Config, on_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_listening = on_listening

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_listening()


async def run_app(
    app: Starlette,
    listener: socket.socket,
    server: ServerSection,
    *,
    on_listening: Callable[[], None],
    on_stopping: Callable[[], None] = lambda: None,
    stop_signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
    stop: asyncio.Task[None] | None = None,
) -> None:
    """Start the application's engines, serve until a stop signal or the end of `stop`, stop the engines.

    The first signal lets open requests finish for `shutdown_timeout_s`; a second one ends at once. A signal during
    start-up cancels it (CancelledError). Errors of the engines' start come out as they are.
    """
    uvicorn_server = _Uvicorn(_config(app, server), on_listening)
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
            await uvicorn_server.serve(sockets=[listener])
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
