"""Rank 0's hold on the other ranks: starts their processes, tells them the plans, notices who dies or hangs, ends them.

A watching thread looks at every rank a few times a second. When one is lost it says so in `check`, for a main thread
that still moves, and calls `on_lost` a moment later, for one that is stuck in a collective with a rank that will never
come. Knows no tensors.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from config.engines import NativeSettings
from engines.errors import EngineUnavailable, HeadraceError
from engines.native.core import Runner
from engines.native.distributed.leading_runner import LeadingRunner
from engines.native.distributed.member import NO_MULTICAST, Member
from engines.native.distributed.ring import Pulse, Ring, create_memory

_LOOK_S = 0.1
_SILENT_S = 4.0  # without one of five heartbeats a second
_STEP_S = {"cuda": 60.0, "cpu": 600.0}  # longer than any step that makes progress
_GRACE_S = 1.0  # for the main thread to find out by itself
_END_S = 5.0  # until a killed process is gone, its GPU memory included


class Ranks:
    """All ranks but this one, from `start` to `close`. `on_lost` is called once, with words, from another thread."""

    def __init__(self, section: NativeSettings, on_lost: Callable[[str], None]) -> None:
        self._section = section
        self._on_lost = on_lost
        self._size = section.tensor_parallel_size
        self._meeting = Path(tempfile.gettempdir()) / f"headrace-ranks-{os.getpid()}-{secrets.token_hex(4)}"
        self._memory = create_memory(self._size)
        self._ring = Ring(self._memory, 0, self._size)
        self._others: list[_Other] = []
        self._pulses = {rank: Pulse(self._ring, rank, int(_SILENT_S / _LOOK_S)) for rank in range(1, self._size)}
        self._leading: LeadingRunner | None = None
        self._step_s = 0.0
        self._lost = ""
        self._closed = threading.Event()
        self._noticed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="ranks", daemon=True)

    @property
    def member(self) -> Member:
        """What rank 0 builds its own part with."""
        return Member(0, self._size, self._meeting, self._lead)

    def start(self) -> None:
        os.environ.update(NO_MULTICAST)  # read when the libraries are first used, here and in the others
        settings = self._section.model_dump_json().encode() + b"\n"
        self._others = [_Other(rank, self._size, self._memory, self._meeting) for rank in range(1, self._size)]
        for other in self._others:
            other.tell(settings)
        self._watcher.start()

    def check(self) -> None:
        """Raises EngineUnavailable, saying which rank was lost and how, if one was."""
        if self._lost:
            raise EngineUnavailable(self._lost)

    def explain(self, error: Exception) -> str:
        """What to tell of an error of this process: its own words, or those of the lost rank that is behind it."""
        if isinstance(error, HeadraceError):
            return error.message
        self._noticed.wait(_GRACE_S)
        return self._lost

    def watch_steps(self, device: str) -> None:
        """From now on every rank answers within seconds: silence is a loss, and so is a step that never ends."""
        self._step_s = _STEP_S[device]

    def close(self) -> None:
        """End all processes at once; safe to call twice."""
        self._closed.set()
        for other in self._others:
            other.kill()
        for other in self._others:
            other.wait(_END_S)
        with suppress(OSError):
            self._meeting.unlink()

    def _lead(self, runner: Runner) -> Runner:
        self._leading = LeadingRunner(runner, self._publish)
        return self._leading

    def _publish(self, record: bytes) -> None:
        for rank in self._ring.write(record, self.check):
            self._others[rank - 1].tell(b"\n")

    # --- the watching thread ------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK_S):
            self._ring.beat()
            lost = self._find_loss()
            if lost:
                self._lost = lost
                self._noticed.set()
                if not self._closed.wait(_GRACE_S):
                    self._on_lost(lost)
                return

    def _find_loss(self) -> str:
        for other in self._others:
            name = f"Rank {other.rank} of {self._size}"
            if (end := other.end()) is not None:
                return f"{name} {end}"
            if self._pulses[other.rank].stopped() and self._step_s:
                return f"{name} hangs: no sign of life for {_SILENT_S:g} s."
        if self._step_s and self._leading is not None and self._leading.busy_s > self._step_s:
            return f"The ranks hang: a step did not end within {self._step_s:g} s."
        return ""


@contextmanager
def other_ranks(section: NativeSettings) -> Generator[Member | None, None, None]:
    """The other ranks' processes, if there are any, for a caller that builds the core in its own process.

    Gives what rank 0 builds with. When a rank is lost, this process ends with one line that says so.
    """
    if section.tensor_parallel_size == 1:
        yield None
        return

    def end(message: str) -> None:
        print(message, file=sys.stderr, flush=True)
        ranks.close()
        os._exit(2)

    ranks = Ranks(section, end)
    try:
        ranks.start()
        yield ranks.member
    finally:
        ranks.close()


class _Other:
    """One other rank's process, its standard input (settings, then wake-ups) and its last words."""

    def __init__(self, rank: int, size: int, memory: int, meeting: Path) -> None:
        self.rank = rank
        self._words, theirs = os.pipe()
        arguments = [str(argument) for argument in (rank, size, memory, theirs, meeting)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "engines.native.distributed.follower", *arguments],
            stdin=subprocess.PIPE,
            pass_fds=(memory, theirs),
        )
        os.close(theirs)
        os.set_blocking(self._words, False)

    def tell(self, data: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it died: whoever watches finds out
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def end(self) -> str | None:
        """How the process ended, in words; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        try:
            words = os.read(self._words, 1 << 16).decode(errors="replace")
        except BlockingIOError:
            words = ""
        if words:
            return f"failed: {words}"
        return f"was ended by {signal.Signals(-code).name}." if code < 0 else f"ended with code {code}."

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()

    def wait(self, timeout_s: float) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        if self._words >= 0:
            os.close(self._words)
            self._words = -1
