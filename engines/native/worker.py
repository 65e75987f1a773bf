"""The engine core's process: reads messages, steps, sends what each step brought. `python -m engines.native.worker
ADDRESS`

The section of settings arrives as JSON on standard input. One ROUTER socket serves every gateway process; a message per
step and client goes out, never one per token. The process ends when the one that started it does. Where a model is
split, this is rank 0's process; it starts the others' and fails when one of them does.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import zmq

from config.engines import NativeSettings
from engines.errors import HeadraceError
from engines.native.launch import OnProgress
from engines.native.models.encoders import is_encoder
from engines.native.types import (
    FINISH_ERROR,
    AbortSequences,
    AddSequence,
    ClientMessage,
    CoreFailed,
    CoreMessage,
    Hello,
    LoadProgress,
    Ready,
    StepOutputs,
    StepReport,
    TokenOutput,
)
from engines.native.weights.resolve import resolve_model

if TYPE_CHECKING:
    from engines.native.core import Core
    from engines.native.scheduler import Output

_IDLE_POLL_MS = 1000
_COMPILING_POLL_MS = 1  # while a grammar is being compiled, whose end no message announces
_PROGRESS_INTERVAL_S = 0.05


class CoreServer:
    """The core's side of the socket."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.sndhwm = self._socket.rcvhwm = 0  # a slow gateway must not lose tokens
        self._socket.bind(address)
        self._decoder = msgspec.msgpack.Decoder(ClientMessage)
        self._encoder = msgspec.msgpack.Encoder()
        self._clients: dict[bytes, int] = {}  # identity -> process id
        self._ready: Ready | None = None
        self._last_progress = 0.0

    # --- while loading ------------------------------------------------------------------------------------------------

    def report_progress(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self._last_progress < _PROGRESS_INTERVAL_S:
            return
        self._last_progress = now
        self._greet(core=None)
        self._broadcast(LoadProgress(stage, done, total))

    def fail(self, message: str) -> None:
        """Tell every client that there will be no answer, waiting a little for one that is still connecting."""
        if not self._clients:
            self._socket.poll(500)
        self._greet(core=None)
        self._broadcast(CoreFailed(message))
        self._context.destroy(linger=500)

    def fail_to_start(self, error: Exception) -> int:
        """`fail`, in an operator's words where the error has them. Returns the exit code."""
        if isinstance(error, HeadraceError):
            self.fail(error.message)
        else:
            traceback.print_exception(error)
            self.fail(f"The engine core could not start: {type(error).__name__}: {error}")
        return 1

    def close(self) -> None:
        """Let go of the socket. Left to the interpreter's end, its context may wait for a socket that nobody closes."""
        self._context.destroy(linger=0)

    # --- serving ------------------------------------------------------------------------------------------------------

    def serve(
        self,
        core: Core,
        ready: Ready,
        *,
        step: Callable[[], list[Output]],
        max_waiting: int,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Run until the process is told to end. `check`, called now and then, raises when it cannot go on."""
        self._ready = ready
        self._broadcast(ready)
        next_check = 0.0
        idle = True
        while True:
            if not core.has_work:
                if not idle:  # the last sequence may have left without a word: gauges must fall to zero all the same
                    self._broadcast(StepOutputs((), core.stats()))
                    self._broadcast(StepReport(core.step_stats()))
                    idle = True
                self._socket.poll(_COMPILING_POLL_MS if core.is_compiling else _IDLE_POLL_MS)
            self._greet(core, max_waiting)
            now = time.monotonic()
            if now >= next_check:
                self._forget_dead_clients(core)
                check()
                if not idle:
                    self._broadcast(StepReport(core.step_stats()))
                next_check = now + 1.0
            if core.has_work:
                idle = False
                self._report(core, step())

    def _report(self, core: Core, outputs: list[Output]) -> None:
        """One message for each client that this step brought something for."""
        by_client: defaultdict[bytes, list[TokenOutput]] = defaultdict(list)
        for sequence, output in outputs:
            by_client[sequence.key[0]].append(output)
        stats = core.stats()
        for client, of_client in by_client.items():
            self._send(client, StepOutputs(tuple(of_client), stats))

    def _greet(self, core: Core | None, max_waiting: int = 0) -> None:
        """Handle every message that has arrived; before the core exists that can only be Hello."""
        while True:
            try:
                client, payload = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            match self._decoder.decode(payload):
                case Hello(process_id):
                    self._clients[client] = process_id
                    if self._ready is not None:
                        self._send(client, self._ready)
                    if core is not None:  # what it has counted so far: a scrape of a new gateway must not begin at zero
                        self._send(client, StepOutputs((), core.stats()))
                        self._send(client, StepReport(core.step_stats()))
                case AddSequence() as message if core is not None:
                    if core.num_waiting < max_waiting:
                        core.add(client, message)
                    else:
                        refusal = TokenOutput(message.seq_id, (), FINISH_ERROR, error="overloaded")
                        self._send(client, StepOutputs((refusal,), core.stats()))
                case AbortSequences(seq_ids) if core is not None:
                    core.abort(client, seq_ids)
                case _:
                    pass

    def _forget_dead_clients(self, core: Core) -> None:
        """A gateway process that died cannot abort what it asked for."""
        for client, process_id in list(self._clients.items()):
            if not _process_exists(process_id):
                del self._clients[client]
                core.abort_client(client)

    def _broadcast(self, message: CoreMessage) -> None:
        for client in self._clients:
            self._send(client, message)

    def _send(self, client: bytes, message: CoreMessage) -> None:
        self._socket.send_multipart((client, self._encoder.encode(message)))


def _process_exists(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def die_with_parent(signal_number: int) -> None:
    """Ask the kernel for a signal when the parent ends (prctl PR_SET_PDEATHSIG, Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal_number)


def main() -> int:
    """Exit codes: 0 told to end, 1 could not start, 2 failed while serving."""
    die_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal; the owner decides when we end
    server = CoreServer(sys.argv[1])
    try:
        section = NativeSettings.model_validate_json(sys.stdin.buffer.read())
        if section.tensor_parallel_size > 1:
            from engines.native.distributed.leader import run_leader

            run_leader(server, section)
        return run(server, section)
    finally:
        server.close()


def run(server: CoreServer, section: NativeSettings) -> int:
    """One process holds the whole model."""
    try:
        core, ready, step = _build(section, server.report_progress)
    except Exception as error:
        return server.fail_to_start(error)
    settle()
    try:
        server.serve(core, ready, step=step, max_waiting=section.max_waiting)
    except Exception as error:
        traceback.print_exc()
        server.fail(f"The engine core failed: {type(error).__name__}: {error}")
        return 2
    return 0


def _build(section: NativeSettings, on_progress: OnProgress) -> tuple[Core, Ready, Callable[[], list[Output]]]:
    """The core of the model's kind, and how it steps. Imports torch: after the socket, so that clients see us early."""
    files = resolve_model(section, on_progress)
    if is_encoder(files.path):
        from engines.native.encoder.build import build_encoder

        core, ready = build_encoder(section, files, on_progress)
        return core, ready, core.step
    from engines.native.build import build_core

    built = build_core(section, on_progress, files=files)
    return built.core, built.ready, built.core.step_overlapped if built.overlapped else built.core.step


def settle() -> None:
    """What exists now stays: the garbage collector need not look at it again."""
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    sys.exit(main())
