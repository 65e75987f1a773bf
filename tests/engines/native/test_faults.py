"""What happens when processes die or clients leave: errors instead of hangs, and the engine comes back."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from config.engines import NativeSettings
from engines.api import Done, GenerationRequest, SamplingParams, TextDelta, TextPrompt
from engines.errors import EngineUnavailable, InvalidRequest, Overloaded, PromptTooLong
from engines.native.engine import NativeEngine

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(smollm2_gguf) -> AsyncGenerator[NativeEngine, None]:
    section = NativeSettings(model=str(smollm2_gguf), device="cpu", kv_cache_memory="256MiB", max_waiting=40)
    engine = NativeEngine(section)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.aclose()


def request(prompt: str = "Once upon a time", **sampling) -> GenerationRequest:
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 8, "ignore_eos": True, **sampling})
    return GenerationRequest(request_id="r", model="m", prompt=TextPrompt(prompt), sampling=params)


async def complete(engine: NativeEngine, asked: GenerationRequest) -> str:
    async with aclosing(engine.generate(asked)) as events:
        return "".join([event.text async for event in events if isinstance(event, TextDelta)])


async def until(condition, timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.01)


def core_process() -> psutil.Process:
    (core,) = [p for p in psutil.Process().children() if "engines.native.worker" in p.cmdline()]
    return core


async def test_abandoned_streams_free_their_blocks_and_the_next_request_is_served(engine):
    async def abandon(i: int) -> None:
        async with aclosing(engine.generate(request(f"Story number {i}", max_tokens=2000))) as events:
            await anext(events)

    for _ in range(5):
        await asyncio.gather(*(abandon(i) for i in range(40)))
    await until(lambda: engine.stats().running == 0 and engine.stats().waiting == 0)
    assert engine.stats().kv_blocks_used == 0
    assert await complete(engine, request())


async def test_a_full_queue_refuses_and_loses_nobody_else(engine):
    refused = 0
    finished = 0

    async def one(i: int) -> None:
        nonlocal refused, finished
        try:
            await complete(engine, request(f"{i}", max_tokens=2))
            finished += 1
        except Overloaded:
            refused += 1

    await asyncio.gather(*(one(i) for i in range(160)))
    assert refused > 0
    assert refused + finished == 160


async def test_limits_are_named_with_both_numbers(engine):
    context = engine.ready.max_model_len
    with pytest.raises(PromptTooLong, match=rf"has \d+ tokens.*{context}"):
        await complete(engine, request("word " * (context + 10)))
    with pytest.raises(PromptTooLong, match=rf"max_tokens is {context}.*{context}"):
        await complete(engine, request(max_tokens=context))
    with pytest.raises(InvalidRequest, match=r"logit_bias: token id 99999999.*49152"):
        await complete(engine, request(logit_bias=((99999999, 1.0),)))


async def test_a_gateway_that_comes_later_is_told_what_was_counted_before_it(engine, smollm2_gguf):
    await complete(engine, request())
    await until(lambda: engine.stats().running == 0)
    address = core_process().cmdline()[-1]
    later = NativeEngine(NativeSettings(model=str(smollm2_gguf), device="cpu"), address=address)
    await later.start()
    try:
        await until(lambda: later.stats().steps == engine.stats().steps)
        assert later.stats() == engine.stats()
        assert sum(later.stats().steps.decode.whole.counts) >= 7
    finally:
        await later.aclose()


async def test_a_killed_core_fails_open_requests_with_words_and_comes_back(engine):
    failures: list[EngineUnavailable] = []
    streaming = asyncio.Event()

    async def watch() -> None:
        try:
            async with aclosing(engine.generate(request(max_tokens=2000))) as events:
                async for event in events:
                    streaming.set()
                    assert not isinstance(event, Done)
        except EngineUnavailable as error:
            failures.append(error)

    watchers = [asyncio.create_task(watch()) for _ in range(3)]
    await streaming.wait()
    core = core_process()
    os.kill(core.pid, signal.SIGKILL)
    await asyncio.wait_for(asyncio.gather(*watchers), 30)
    assert len(failures) == 3
    assert all("ended" in error.message for error in failures)
    assert not (await engine.health()).ok
    await until(lambda: engine.ready is not None)
    assert (await engine.health()).ok
    assert core_process().pid != core.pid
    assert await complete(engine, request())


async def test_a_closed_engine_leaves_no_process_and_no_socket(smollm2_gguf):
    engine = NativeEngine(NativeSettings(model=str(smollm2_gguf), device="cpu", kv_cache_memory="64MiB"))
    before = {child.pid for child in psutil.Process().children()}
    await engine.start()
    (core,) = [child for child in psutil.Process().children() if child.pid not in before]
    socket = Path(core.cmdline()[-1].removeprefix("ipc://"))
    assert _exists(socket)
    await engine.aclose()
    assert not core.is_running()
    assert not _exists(socket.parent)


def _exists(path: Path) -> bool:
    return path.exists()


async def test_a_model_that_cannot_be_loaded_is_an_error_in_words(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    engine = NativeEngine(NativeSettings(model=str(tmp_path), device="cpu"))
    with pytest.raises(EngineUnavailable):
        await engine.start()
