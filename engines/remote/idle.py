"""A limit on each of many short waits, at the price of one timer for all of them.

`asyncio.timeout` around every read of a stream costs as much as the rest of the read. Knows tasks and clocks only.
"""

from __future__ import annotations

import asyncio
from types import TracebackType


class IdleLimit:
    """Enter it around each wait: one that exceeds `limit_s` is cancelled and leaves as TimeoutError. Not reentrant.

    The timer stays where it is when a wait ends. When it fires, it looks since when the present wait lasts, and sets
    itself again for what is left of that one's limit.
    """

    __slots__ = ("_cancelling", "_expired", "_limit_s", "_loop", "_since", "_task", "_timer")

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[object] | None = None  # None between waits
        self._since = 0.0
        self._cancelling = 0
        self._expired = False
        self._timer = self._loop.call_later(limit_s, self._look)

    def close(self) -> None:
        self._timer.cancel()

    def __enter__(self) -> None:
        self._task = task = asyncio.current_task()
        assert task is not None
        self._cancelling = task.cancelling()
        self._since = self._loop.time()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        task, self._task = self._task, None
        # Someone else may have cancelled the task as well; then it stays cancelled.
        if (
            self._expired
            and task is not None
            and task.uncancel() <= self._cancelling
            and kind is asyncio.CancelledError
        ):
            raise TimeoutError from error

    def _look(self) -> None:
        now = self._loop.time()
        since = self._since if self._task is not None else now
        if now - since >= self._limit_s and self._task is not None:
            self._expired = True
            self._task.cancel()
        else:
            self._timer = self._loop.call_at(since + self._limit_s, self._look)
