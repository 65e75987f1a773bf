from __future__ import annotations

import asyncio

import pytest

from engines.remote.idle import IdleLimit


async def test_many_short_waits_outlast_the_limit():
    limit = IdleLimit(0.05)
    for _ in range(10):
        with limit:
            await asyncio.sleep(0.01)
    limit.close()


async def test_time_between_waits_does_not_count():
    limit = IdleLimit(0.05)
    await asyncio.sleep(0.12)
    with limit:
        await asyncio.sleep(0)
    limit.close()


@pytest.mark.parametrize("before_s", [0.0, 0.03, 0.12], ids=["at once", "timer half way", "timer set again"])
async def test_long_wait_is_cut(before_s: float):
    limit = IdleLimit(0.05)
    await asyncio.sleep(before_s)
    with pytest.raises(TimeoutError), limit:
        await asyncio.sleep(10)
    limit.close()
    await asyncio.sleep(0)  # the task itself is not left cancelled


async def test_cancellation_from_outside_stays_one():
    limit = IdleLimit(10)

    async def wait() -> None:
        with limit:
            await asyncio.sleep(10)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    limit.close()
