"""A rank's process other than rank 0's: builds its part of the model, then does every step that rank 0 decides.

    python -m engines.native.distributed.follower RANK WORLD_SIZE MEMORY_FD WORDS_FD MEETING_FILE

The section of settings arrives as a line of JSON on standard input; every byte after it is a wake-up. What goes wrong
is written to WORDS_FD in words for an operator. The process is killed when rank 0 ends, and ends rank 0 if that hangs.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from config.engines import NativeSettings
from engines.errors import HeadraceError
from engines.native.core import Runner
from engines.native.distributed.member import Member
from engines.native.distributed.plan_record import decode_masks, decode_plan
from engines.native.distributed.ring import Pulse, Ring
from engines.native.worker import die_with_parent, settle

_BEAT_S = 0.2
_LEADER_SILENT_S = 10.0
_SPIN_S = {"cuda": 0.02, "cpu": 0.0002}  # on a CPU the core that spins is one that computes


def follow(ring: Ring, runner: Runner, device: str) -> None:
    """Do what rank 0 publishes, for ever. Tokens are not waited for: they stay on the device, where they are needed."""
    spin_s = _SPIN_S[device]
    while True:
        plan = decode_plan(ring.read(_sleep, spin_s))
        launched = runner.launch(plan)
        if plan.awaits_masks:
            runner.choose(launched, decode_masks(ring.read(_sleep, spin_s)))


def _sleep(seconds: float) -> None:
    """Until rank 0 writes to standard input, at most so long."""
    if select.select([0], [], [], seconds)[0] and not os.read(0, 4096):
        os._exit(0)  # rank 0 closed it


def _read_settings() -> NativeSettings:
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)  # one by one: what follows the line is not ours to take
        if not byte:
            sys.exit(0)
        line += byte
    return NativeSettings.model_validate_json(line)


class _Beat:
    """A thread that tells rank 0 that this process is not stopped, and looks after rank 0 in return."""

    def __init__(self, ring: Ring) -> None:
        self.serving = threading.Event()  # loading may take rank 0's attention for long
        self._ring = ring
        self._leader = os.getppid()
        threading.Thread(target=self._run, name="beat", daemon=True).start()

    def _run(self) -> None:
        pulse = Pulse(self._ring, 0, int(_LEADER_SILENT_S / _BEAT_S))
        while True:
            time.sleep(_BEAT_S)
            self._ring.beat()
            if os.getppid() != self._leader:
                os._exit(0)
            if pulse.stopped() and self.serving.is_set():
                os.kill(self._leader, signal.SIGKILL)
                os._exit(1)


def main() -> int:
    die_with_parent(signal.SIGKILL)  # it may be inside a collective that never ends, where SIGTERM is not heard
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    rank, world_size, memory, words = map(int, sys.argv[1:5])
    section = _read_settings()
    ring = Ring(memory, rank, world_size)
    beat = _Beat(ring)
    try:
        from engines.native.build import build_core

        built = build_core(section, lambda *_: None, Member(rank, world_size, Path(sys.argv[5])))
        settle()
        beat.serving.set()
        follow(ring, built.runner, built.device)
    except HeadraceError as error:
        os.write(words, error.message.encode())
    except Exception as error:
        traceback.print_exc()
        os.write(words, f"{type(error).__name__}: {error}".encode())
    return 1


if __name__ == "__main__":
    sys.exit(main())
