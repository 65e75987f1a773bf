"""The listening socket: bound before anything is loaded, so that a taken port is known at once.

It listens only when a server takes it over, and a client that comes earlier is refused rather than kept waiting.
"""

from __future__ import annotations

import errno
import socket
from pathlib import Path

from config.server import ServerSection


class CannotListen(Exception):
    """The address cannot be had; the message is for the operator."""


def bind(server: ServerSection) -> socket.socket:
    """Raises CannotListen."""
    try:
        return _bind_unix(server.uds) if server.uds is not None else _bind_tcp(server.host, server.port)
    except OSError as error:
        place = f"{server.uds}" if server.uds is not None else f"{server.host}:{server.port}"
        if error.errno == errno.EADDRINUSE:
            raise CannotListen(
                f"{place} is in use; stop what listens there or choose another port with --port."
            ) from None
        raise CannotListen(f"Cannot listen on {place}: {error.strerror or error}.") from None


def release(listener: socket.socket, server: ServerSection) -> None:
    """Close it, and remove a Unix socket's file."""
    listener.close()
    if server.uds is not None:
        server.uds.unlink(missing_ok=True)


def url_of(listener: socket.socket) -> str:
    """Where a client on this machine reaches it."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    address: tuple[str, int] = listener.getsockname()[:2]
    host, port = address
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _bind_tcp(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _bind_unix(path: Path) -> socket.socket:
    if path.is_socket() and not _answers(path):
        path.unlink()  # left behind by a server that was killed
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
