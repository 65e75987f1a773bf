"""Several gateway processes behind one listening socket, and the parent that starts, restarts and stops them.

The parent accepts connections and deals them out; it also owns the cores of native engines, one process per engine, to
which every child connects. A child ends when its pipe to the parent does, so none outlives a killed parent.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop
from prometheus_client import multiprocess

from config.engines import NativeSettings
from engines.errors import EngineUnavailable, HeadraceError
from gateway.cli.display import Display
from gateway.cli.handover import Dealer, channel
from gateway.cli.listener import url_of
from gateway.cli.logs import configure_logging
from gateway.cli.server import run_app
from gateway.cli.wiring import Gateway, Report, ServePlan, missing_package

if TYPE_CHECKING:
    from engines.native.launch import CoreProcess

logger = logging.getLogger("headrace.gateway")

_RESTART_DELAYS_S = (0.5, 1.0, 2.0, 5.0, 10.0)
_LOOK_S = 0.5
_KILL_AFTER_S = 5.0  # beyond the shutdown timeout


# --- the parent -------------------------------------------------------------------------------------------------------


async def run_workers(plan: ServePlan, listener: socket.socket, display: Display) -> None:
    """Raises what the cores or the first start of a child raise; a later death is logged and mended."""
    signals = _StopSignals()
    async with AsyncExitStack() as stack:
        metrics_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-metrics-")))
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics_dir)  # for the children, see gateway/metrics.py
        cores: dict[int, CoreProcess] = {}
        for place, section in enumerate(plan.engines):
            if isinstance(section, NativeSettings):
                core = cores[place] = _core(section)
                stack.push_async_callback(asyncio.to_thread, core.stop)
                await asyncio.to_thread(core.start, display.progress)
        addresses = {place: core.address for place, core in cores.items()}
        shared_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-shared-")))
        responses_path = shared_dir / "responses.sqlite"
        child_plan = replace(plan, core_addresses=addresses, metrics_dir=metrics_dir, responses_path=responses_path)
        workers = [_Worker(child_plan) for _ in range(plan.server.gateway_workers)]
        stack.push_async_callback(_stop_all, workers)
        signals.on_repeat = lambda: [worker.terminate() for worker in workers]
        reports = await asyncio.gather(*(worker.start() for worker in workers))
        dealer = Dealer(listener, lambda: [worker.channel for worker in workers if worker.channel is not None])
        stack.callback(dealer.close)
        dealer.start()
        display.ready(reports[0].engines, url_of(listener), reports[0].paths, len(workers))
        keepers = [worker.keep_alive() for worker in workers] + [_keep_core_alive(core) for core in cores.values()]
        tasks = [asyncio.create_task(keeper) for keeper in keepers]
        stack.push_async_callback(_cancel_all, tasks)
        await signals.wait()
        dealer.close()
        display.stopping(plan.server)


class _StopSignals:
    """SIGINT and SIGTERM: before `wait` they cancel the task, in it they end it, afterwards they call `on_repeat`."""

    def __init__(self) -> None:
        self.on_repeat: Callable[[], object] = lambda: None
        self._stopping = asyncio.Event()
        self._starting = asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._signalled)

    def _signalled(self) -> None:
        if self._stopping.is_set():
            self.on_repeat()
        elif self._starting is not None:
            self._starting.cancel()
        self._stopping.set()

    async def wait(self) -> None:
        self._starting = None
        await self._stopping.wait()


def _core(section: NativeSettings) -> CoreProcess:
    try:
        from engines.native.launch import CoreProcess
    except ImportError as error:
        raise missing_package(section.kind, error) from error
    return CoreProcess(section)


async def _keep_core_alive(core: CoreProcess) -> None:
    """Clients of a core reconnect by themselves, so starting it again is all there is to do."""
    failures = 0
    while True:
        await asyncio.sleep(_LOOK_S)
        if core.alive:
            continue
        logger.error("the engine core ended with code %s; starting it again", core.exit_code)
        await asyncio.sleep(_delay_s(failures))
        failures += 1
        core.spawn()


def _delay_s(failures: int) -> float:
    return _RESTART_DELAYS_S[min(failures, len(_RESTART_DELAYS_S) - 1)]


async def _stop_all(workers: list[_Worker]) -> None:
    await asyncio.gather(*(worker.stop() for worker in workers))


async def _cancel_all(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _Worker:
    """One place among the gateway processes, held by one child after another. `channel`: None while none serves."""

    def __init__(self, plan: ServePlan) -> None:
        self.channel: socket.socket | None = None
        self._plan = plan
        self._pipe: Connection | None = None
        self._process: BaseProcess | None = None

    async def start(self) -> Report:
        """Return when the child can serve. Raises EngineUnavailable with the child's own words if it cannot."""
        ours, theirs = multiprocessing.Pipe()
        our_channel, their_channel = channel()
        process = multiprocessing.get_context("spawn").Process(
            target=run_worker, args=(self._plan, their_channel, theirs), name="headrace-gateway", daemon=True
        )
        process.start()
        theirs.close()
        their_channel.close()
        self._pipe, self._process = ours, process
        try:
            report = await self._first_report(ours)
        except BaseException:
            our_channel.close()
            raise
        self.channel = our_channel
        return report

    async def _first_report(self, pipe: Connection) -> Report:
        await _readable(pipe.fileno())
        try:
            report: Report | str = pipe.recv()
        except EOFError:
            raise EngineUnavailable("A gateway process ended while starting.") from None
        if isinstance(report, str):
            raise EngineUnavailable(report)
        return report

    async def keep_alive(self) -> None:
        failures = 0
        while True:
            process = self._process
            assert process is not None
            await _readable(process.sentinel)
            self._close_channel()
            process.join()
            logger.error("gateway process %s ended with code %s; starting another", process.pid, process.exitcode)
            multiprocess.mark_process_dead(process.pid, str(self._plan.metrics_dir))  # pyright: ignore[reportUnknownMemberType]
            await asyncio.sleep(_delay_s(failures))
            try:
                await self.start()
                failures = 0
            except HeadraceError as error:
                failures += 1
                logger.error("gateway process did not start: %s", error.message)

    async def stop(self) -> None:
        """The child's open requests get the shutdown timeout; one that overstays is killed."""
        self._close_channel()
        if self._process is None or self._pipe is None:
            return
        self._pipe.close()
        try:
            async with asyncio.timeout(self._plan.server.shutdown_timeout_s + _KILL_AFTER_S):
                await _readable(self._process.sentinel)
        except TimeoutError:
            self._process.kill()
        self._process.join()

    def _close_channel(self) -> None:
        if self.channel is not None:
            self.channel.close()
            self.channel = None

    def terminate(self) -> None:
        if self._process is not None:
            self._process.terminate()


async def _readable(fd: int) -> None:
    """A pipe has a message or its other end is gone; a process's sentinel: it ended."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(fd, lambda: ready.done() or ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(fd)


# --- a child ----------------------------------------------------------------------------------------------------------


def run_worker(plan: ServePlan, channel: socket.socket, pipe: Connection) -> None:
    """A gateway process's whole life. Reports once: a Report when it can serve, else a line that says why not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    configure_logging(plan.server.log_level)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(plan, channel, pipe))
    except (HeadraceError, ValueError) as error:
        _tell(pipe, str(error))
        sys.exit(1)
    except asyncio.CancelledError:
        sys.exit(0)


async def _serve(plan: ServePlan, channel: socket.socket, pipe: Connection) -> None:
    channel.setblocking(False)
    gateway = Gateway(plan)
    parent_gone = asyncio.create_task(_readable(pipe.fileno()))
    await run_app(
        gateway.app,
        channel,
        plan.server,
        handed=True,
        on_ready=lambda: _tell(pipe, gateway.report()),
        stop_signals=(signal.SIGTERM,),
        stop=parent_gone,
    )
    parent_gone.cancel()


def _tell(pipe: Connection, message: Report | str) -> None:
    with suppress(BrokenPipeError):  # the parent has given up already
        pipe.send(message)
