"""Rank 0's process: the engine core of worker.py with ranks behind it, told of their loss whatever it is doing.

The main thread gives up the socket while it builds and while it steps, which is when it may be stuck in a collective
with a rank that will never come. Then the watching thread takes the socket, tells the clients, and ends the process.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, ParamSpec, TypeVar

from config.engines import NativeSettings
from engines.errors import EngineUnavailable
from engines.native.distributed.member import refuse_unsplittable
from engines.native.distributed.ranks import Ranks
from engines.native.models import load_config
from engines.native.models.encoders import is_encoder
from engines.native.weights.resolve import resolve_model
from engines.native.worker import CoreServer, settle

if TYPE_CHECKING:
    from engines.native.build import BuiltCore

P = ParamSpec("P")
T = TypeVar("T")
_TURN_S = 3.0  # the main thread gives up its turn within a second, even when idle


def run_leader(server: CoreServer, section: NativeSettings) -> NoReturn:
    """worker.run with ranks. Ends the process at once: libraries that take leave of the other ranks would wait."""
    code = 2
    try:
        code = _run(server, section)
    except SystemExit:  # told to end
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def _run(server: CoreServer, section: NativeSettings) -> int:
    """Returns the exit code, as worker.run."""
    turn = threading.Lock()  # who holds it may use the socket

    def give_up(message: str) -> None:
        if turn.acquire(timeout=_TURN_S):
            server.fail(message)
        ranks.close()
        os._exit(2)

    ranks = Ranks(section, give_up)
    try:
        try:
            built = _build(server, section, ranks, turn)
        except Exception as error:
            turn.acquire()
            _fail(server, ranks, error, "could not start")
            return 1
        settle()
        ranks.watch_steps(built.device)
        step = _without(turn, built.core.step_overlapped if built.overlapped else built.core.step)
        turn.acquire()
        try:
            server.serve(built.core, built.ready, step=step, max_waiting=section.max_waiting, check=ranks.check)
        except Exception as error:
            _fail(server, ranks, error, "failed")
            return 2
        return 0
    finally:
        ranks.close()


def _build(server: CoreServer, section: NativeSettings, ranks: Ranks, turn: threading.Lock) -> BuiltCore:
    files = resolve_model(section, _holding(turn, server.report_progress))  # fetched once, not by every rank
    if is_encoder(files.path):
        raise EngineUnavailable(
            f"tensor_parallel_size is {section.tensor_parallel_size}, but the model is an encoder, which one device "
            "holds whole.",
            field="tensor_parallel_size",
        )
    refuse_unsplittable(load_config(files.path), section.tensor_parallel_size)
    ranks.start()
    from engines.native.build import build_core  # imports torch, while the other ranks do the same

    return build_core(section, _holding(turn, server.report_progress), ranks.member)


def _fail(server: CoreServer, ranks: Ranks, error: Exception, what: str) -> None:
    """Tell the clients, with the turn held, in the words of the rank that is behind it."""
    words = ranks.explain(error)
    if not words:
        traceback.print_exception(error)
        words = f"The engine core {what}: {type(error).__name__}: {error}"
    server.fail(words)


def _holding(turn: threading.Lock, call: Callable[P, None]) -> Callable[P, None]:
    def holding(*args: P.args, **kwargs: P.kwargs) -> None:
        with turn:
            call(*args, **kwargs)

    return holding


def _without(turn: threading.Lock, call: Callable[[], T]) -> Callable[[], T]:
    """`call` with the turn given up meanwhile."""

    def without() -> T:
        turn.release()
        try:
            return call()
        finally:
            turn.acquire()

    return without
