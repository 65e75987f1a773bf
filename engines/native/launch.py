"""Starts and stops the engine core's process for the process that owns it. Knows processes and sockets, no tensors."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq

from config.engines import NativeSettings
from engines.errors import EngineUnavailable
from engines.native.types import CoreFailed, CoreMessage, Hello, LoadProgress, Ready

OnProgress = Callable[[str, int, int], None]
"""Called with (stage, done, total) while a model is fetched and loaded; units are bytes."""

_STOP_GRACE_S = 5.0


class CoreProcess:
    """One engine core in a process of its own, reachable at `address`."""

    def __init__(self, section: NativeSettings) -> None:
        self._section = section
        self._folder = Path(tempfile.gettempdir()) / f"headrace-{os.getpid()}-{secrets.token_hex(4)}"
        self._process: subprocess.Popen[bytes] | None = None
        self.address = f"ipc://{self._folder}/core"

    def spawn(self) -> None:
        """Start the process (again); it listens at the same address and tells its clients when it is ready."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "engines.native.worker", self.address], stdin=subprocess.PIPE
        )
        assert self._process.stdin is not None
        self._process.stdin.write(self._section.model_dump_json().encode())
        self._process.stdin.close()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def start(self, on_progress: OnProgress | None = None) -> Ready:
        """Spawn, and block until the core is ready. Raises EngineUnavailable with the core's own words if it fails."""
        self.spawn()
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.linger = 0
            socket.connect(self.address)
            socket.send(msgspec.msgpack.encode(Hello(os.getpid())))
            decoder = msgspec.msgpack.Decoder(CoreMessage)
            while True:
                while not socket.poll(200):
                    if not self.alive:
                        raise EngineUnavailable(f"The engine core exited with code {self.exit_code} while starting.")
                match decoder.decode(socket.recv()):
                    case LoadProgress(stage, done, total):
                        if on_progress is not None:
                            on_progress(stage, done, total)
                    case Ready() as ready:
                        return ready
                    case CoreFailed(message):
                        self.stop()
                        raise EngineUnavailable(message)
                    case _:
                        pass

    def stop(self) -> None:
        """End the process and remove its socket; safe to call twice."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            deadline = time.monotonic() + _STOP_GRACE_S
            while self._process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
        with contextlib.suppress(OSError):
            shutil.rmtree(self._folder)
