"""`headrace serve`: bind, load, listen. What goes wrong before "Ready" ends the command with one clear line."""

from __future__ import annotations

import asyncio
import socket

import uvloop

from config.settings import Loaded
from engines.errors import HeadraceError
from gateway.cli.display import Display
from gateway.cli.listener import CannotListen, bind, release, url_of
from gateway.cli.logs import configure_logging
from gateway.cli.server import run_app
from gateway.cli.wiring import Gateway, ServePlan
from gateway.cli.workers import run_workers


def serve(loaded: Loaded, display: Display) -> int:
    """Runs until told to stop. Returns the process's exit code."""
    configure_logging(loaded.server.log_level)
    plan = ServePlan(loaded.server, loaded.engines)
    run = _run_here if plan.server.gateway_workers == 1 else run_workers
    try:
        listener = bind(plan.server)
    except CannotListen as error:
        display.error(str(error))
        return 1
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(plan, listener, display))
    except HeadraceError as error:
        display.error(error.message)
        return 1
    except ValueError as error:  # two engines claim one model name
        display.error(str(error))
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        display.close_progress()
        return 130
    finally:
        release(listener, plan.server)
    return 0


async def _run_here(plan: ServePlan, listener: socket.socket, display: Display) -> None:
    gateway = Gateway(plan, display.progress)
    url = url_of(listener)

    def on_ready() -> None:
        report = gateway.report()
        display.ready(report.engines, url, report.paths, num_workers=1)

    await run_app(
        gateway.app, listener, plan.server, on_ready=on_ready, on_stopping=lambda: display.stopping(plan.server)
    )
