"""The gateway's end of the socket to the engine core: submits, aborts, and hands each token output to who waits for it.

One reader task per gateway process decodes one message per step. A connection that breaks fails every waiting choice at
once; the socket reconnects by itself, the client says Hello again, and Ready makes it usable again. Knows no text.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec
import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from engines.errors import EngineUnavailable, HeadraceError
from engines.native.launch import OnProgress
from engines.native.types import (
    AbortSequences,
    AddSequence,
    ClientMessage,
    CoreFailed,
    CoreMessage,
    Hello,
    LoadProgress,
    Ready,
    SchedulerStats,
    StepOutputs,
    StepReport,
    TokenOutput,
)
from engines.step_stats import StepStats


class Sink(Protocol):
    """Who waits for one sequence's outputs. Called on the event loop; must not block."""

    def push(self, output: TokenOutput) -> None: ...

    def fail(self, error: HeadraceError) -> None: ...


class CoreClient:
    """One per gateway process and engine core."""

    def __init__(self, address: str, on_progress: OnProgress | None = None) -> None:
        self._address = address
        self._on_progress = on_progress
        self._sinks: dict[int, Sink] = {}
        self._next_seq_id = 0
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(CoreMessage)
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._context: zmq.asyncio.Context | None = None
        self.ready: Ready | None = None  # None while the core is starting or gone
        self.failure = ""  # why it is gone, where it could say so
        self.stats = SchedulerStats()
        self.steps = StepStats()

    def open(self) -> None:
        """Connect; needs a running event loop. The core may not be there yet."""
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.sndhwm = self._socket.rcvhwm = 0
        self._socket.reconnect_ivl = 50
        monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._socket.connect(self._address)
        self._tasks = [
            asyncio.create_task(self._read(), name="core-client-read"),
            asyncio.create_task(self._watch(monitor), name="core-client-watch"),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._lose("The engine is shutting down.")
        if self._context is not None:
            self._socket.disable_monitor()
            self._context.destroy(linger=0)
            self._context = None

    async def wait_ready(self, alive: Callable[[], bool]) -> Ready:
        """Block until the core can answer. Raises EngineUnavailable when it says it never will, or is not `alive`."""
        while self.ready is None:
            if self.failure:
                raise EngineUnavailable(self.failure)
            if not alive():
                raise EngineUnavailable("The engine core's process ended while starting.")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 0.2)
            self._changed.clear()
        return self.ready

    def new_seq_id(self) -> int:
        self._next_seq_id += 1
        return self._next_seq_id

    def submit(self, message: AddSequence, sink: Sink) -> None:
        """Raises EngineUnavailable while there is no core to submit to."""
        if self.ready is None:
            raise EngineUnavailable(self.failure or "The engine is starting; try again shortly.")
        self._sinks[message.seq_id] = sink
        self._send(message)

    def abort(self, seq_ids: Iterable[int]) -> None:
        """Cancel those that are still running; ids of finished ones are ignored."""
        running = tuple(seq_id for seq_id in seq_ids if self._sinks.pop(seq_id, None) is not None)
        if running and self.ready is not None:
            self._send(AbortSequences(running))

    # --- the socket ---------------------------------------------------------------------------------------------------

    def _send(self, message: ClientMessage) -> None:
        # No high-water mark and a connected peer: the send completes at once, the future is not awaited.
        self._socket.send(self._encoder.encode(message))

    async def _read(self) -> None:
        while True:
            self._receive(self._decoder.decode(await self._socket.recv()))

    def _receive(self, message: CoreMessage) -> None:
        match message:
            case StepOutputs(outputs, stats):
                self.stats = stats
                sinks = self._sinks
                for output in outputs:
                    sink = sinks.pop(output.seq_id, None) if output.finish else sinks.get(output.seq_id)
                    if sink is not None:
                        sink.push(output)
            case StepReport(steps):
                self.steps = steps
            case LoadProgress(stage, done, total):
                if self._on_progress is not None:
                    self._on_progress(stage, done, total)
            case Ready():
                self.ready, self.failure = message, ""
                self._changed.set()
            case CoreFailed(reason):
                self._lose(reason)

    async def _watch(self, monitor: zmq.asyncio.Socket) -> None:
        while True:
            event = parse_monitor_message(await monitor.recv_multipart())["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._send(Hello(os.getpid()))
            else:
                self._lose(self.failure or "The engine core's process ended.")

    def _lose(self, reason: str) -> None:
        """The core is gone: nothing that is running can be finished."""
        self.ready, self.failure = None, reason
        self._changed.set()
        sinks, self._sinks = self._sinks, {}
        for sink in sinks.values():
            sink.fail(EngineUnavailable(reason))
