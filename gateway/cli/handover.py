"""Connections from the process that accepts them to the processes that serve them.

Processes that accept from one shared socket divide connections by who wakes first: of 64 streams opened at once, two
processes got 5 and 59. So the parent alone accepts, and deals connections out in turn over Unix sockets.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator

logger = logging.getLogger("headrace.gateway")

_BACKLOG = 4096
_AT_ONCE = 64  # connections taken in one turn of the loop, so that signals and children get theirs
_PAUSE_S = 0.05  # when no process can take one, or the system has no descriptor left


def channel() -> tuple[socket.socket, socket.socket]:
    """The parent's end and the child's, both non-blocking; one byte and one descriptor per connection."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


class Dealer:
    """Accepts on `listener` once `start` was called. `takers` gives the channels of the processes that serve."""

    def __init__(self, listener: socket.socket, takers: Callable[[], list[socket.socket]]) -> None:
        self._listener = listener
        self._takers = takers
        self._turn = 0
        self._held: socket.socket | None = None  # accepted, and nobody could take it yet
        self._pause: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._listener.listen(_BACKLOG)
        self._listener.setblocking(False)
        self._resume()

    def close(self) -> None:
        """Also closes the listener: clients are refused from now on."""
        if self._pause is not None:
            self._pause.cancel()
        if self._held is not None:
            self._held.close()
        if self._listener.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()

    def _resume(self) -> None:
        self._pause = None
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._deal)
        self._deal()  # the one that is held makes nothing readable

    def _deal(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection = self._held or self._listener.accept()[0]
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                logger.error("cannot accept a connection: %s", error)
                self._wait()
                return
            self._held = None
            if not self._give(connection):
                self._held = connection
                self._wait()
                return

    def _give(self, connection: socket.socket) -> bool:
        takers = self._takers()
        for step in range(len(takers)):
            taker = takers[(self._turn + step) % len(takers)]
            try:
                socket.send_fds(taker, [b"c"], [connection.fileno()])
            except OSError:  # full, or its process has just ended
                continue
            self._turn += step + 1
            connection.close()
            return True
        return False

    def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener.fileno())
        self._pause = loop.call_later(_PAUSE_S, self._resume)


def handed_over(taker: socket.socket) -> Iterator[socket.socket]:
    """The connections that wait in a child's end of a channel, ready for an event loop."""
    while True:
        try:
            _, descriptors, _, _ = socket.recv_fds(taker, _AT_ONCE, _AT_ONCE)
        except (BlockingIOError, ConnectionResetError):
            return
        if not descriptors:
            return
        for descriptor in descriptors:
            connection = socket.socket(fileno=descriptor)
            connection.setblocking(False)
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield connection
