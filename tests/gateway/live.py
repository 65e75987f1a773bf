"""A real server on a loopback socket, in a thread: for what only a real connection shows, and for real clients."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from starlette.applications import Starlette


@dataclass(frozen=True, slots=True)
class Live:
    """A served application. `model` is a name that it answers to."""

    url: str
    model: str

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)


@contextmanager
def serving(app: Starlette, model: str) -> Iterator[Live]:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http="httptools",
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_keep_alive=75,  # as `headrace serve` has it: clients, which wait 5 s, then never race the server
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            # The first native engine on a machine compiles its CPU kernels, half a minute on two slow cores.
            wait_until(lambda: server.started or not thread.is_alive(), timeout_s=180)
            assert server.started, "the application did not start"
            yield Live("http://{}:{}".format(*listener.getsockname()), model)
        finally:
            server.should_exit = True
            thread.join(timeout=30)
            assert not thread.is_alive(), "the server did not stop"


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """A bound on hanging, not a measure of speed."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met"
        time.sleep(0.005)
