"""`headrace` as a user starts it: a process of its own, in an environment without settings."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
READY = re.compile(r"Ready at (\S+)/v1")
START_S = 120.0  # for a machine that does much else


def environment(**settings: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.upper().startswith("HEADRACE_")}
    return clean | {"PYTHONPATH": str(ROOT)} | settings


def headrace(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    command = [sys.executable, "-m", "gateway", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**settings), timeout=START_S)


@dataclass(slots=True)
class Server:
    """A running `headrace serve`. `lines` grows with what it writes to standard error."""

    process: subprocess.Popen[str]
    url: str = ""
    lines: list[str] = field(default_factory=list[str])

    def wait(self) -> int:
        return self.process.wait(START_S)


@contextmanager
def serving(*arguments: str, by: str = "serve", **settings: str) -> Iterator[Server]:
    """Ready on entry, killed on exit if it still runs. Raises AssertionError if it ends before it is ready."""
    command = [sys.executable, "-m", "gateway", by, *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(**settings))
    server = Server(process)
    ready = threading.Event()
    reader = threading.Thread(target=_read, args=(server, ready), daemon=True)
    reader.start()
    try:
        assert ready.wait(START_S), "not ready in time:\n" + "".join(server.lines)
        assert server.url, "ended early:\n" + "".join(server.lines)
        yield server
    finally:
        process.kill()
        process.wait()
        reader.join()
        assert process.stderr is not None
        process.stderr.close()


def _read(server: Server, ready: threading.Event) -> None:
    assert server.process.stderr is not None
    for line in server.process.stderr:
        server.lines.append(line)
        if found := READY.search(line):
            server.url = found[1]
            ready.set()
    ready.set()
