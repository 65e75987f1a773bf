"""A rank that dies, hangs or cannot start takes the engine down with words, and the engine comes back whole."""

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
from engines.api import Done, GenerationRequest, SamplingParams, TextPrompt
from engines.errors import EngineUnavailable
from engines.native.engine import NativeEngine
from tests.engines.native.small_tokenizers import byte_level

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.json and a tokenizer; weights are dummies."""
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("model")
    sizes = {"vocab_size": 420, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    LlamaConfig(
        **sizes, num_attention_heads=4, max_position_embeddings=4096, architectures=["LlamaForCausalLM"]
    ).save_pretrained(folder)
    byte_level().save(str(folder / "tokenizer.json"))
    return folder


def section(model: Path, **settings: object) -> NativeSettings:
    base = {"model": str(model), "device": "cpu", "load_format": "dummy", "tensor_parallel_size": 2}
    return NativeSettings.model_validate({**base, "attention_backend": "torch", "kv_cache_memory": "8MiB", **settings})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model: Path) -> AsyncGenerator[NativeEngine, None]:
    engine = NativeEngine(section(model))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.aclose()
        assert not processes("distributed.follower")


def processes(module: str) -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if any(module in word for word in child.cmdline())]


def request(**sampling: object) -> GenerationRequest:
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 8, "ignore_eos": True, **sampling})
    return GenerationRequest(request_id="r", model="m", prompt=TextPrompt("Once upon a time"), sampling=params)


async def complete(engine: NativeEngine, asked: GenerationRequest) -> list[object]:
    async with aclosing(engine.generate(asked)) as events:
        return [event async for event in events]


async def until_ready(engine: NativeEngine) -> None:
    async with asyncio.timeout(60):
        while engine.ready is None:  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("blow", "words", "busy"),
    [
        pytest.param(signal.SIGSTOP, "Rank 1 of 2 hangs", True, id="stopped-in-a-step"),
        pytest.param(signal.SIGKILL, "Rank 1 of 2 was ended by SIGKILL", False, id="killed-while-idle"),
    ],
)
async def test_a_lost_rank_fails_the_engine_with_words_and_it_comes_back_whole(engine, blow, words, busy):
    await until_ready(engine)
    (follower,) = processes("distributed.follower")
    failures: list[str] = []
    streaming = asyncio.Event()

    async def stream() -> None:
        try:
            async with aclosing(engine.generate(request(max_tokens=4000))) as events:
                async for event in events:
                    streaming.set()
                    assert not isinstance(event, Done)
        except EngineUnavailable as error:
            failures.append(error.message)

    streams = [asyncio.create_task(stream()) for _ in range(2 * busy)]
    if busy:
        await streaming.wait()
    os.kill(follower.pid, blow)
    async with asyncio.timeout(15):
        await asyncio.gather(*streams)
        while (health := await engine.health()).ok:  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.02)
    assert len(failures) == len(streams)
    assert all(words in message for message in [*failures, health.detail])
    await until_ready(engine)
    assert (await engine.health()).ok
    assert [child.pid for child in processes("distributed.follower")] != [follower.pid]
    assert len(processes("distributed.follower")) == 1
    assert isinstance((await complete(engine, request()))[-1], Done)


async def test_ranks_end_with_a_killed_leader(engine):
    await until_ready(engine)
    (follower,) = processes("distributed.follower")
    (leader,) = processes("native.worker")
    leader.kill()
    await asyncio.to_thread(follower.wait, 10)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        pytest.param({"tensor_parallel_size": 3}, "tensor_parallel_size is 3.* 4 attention heads", id="size"),
        pytest.param({"load_format": "auto"}, "folder holds no weights", id="no-weights"),
    ],
)
async def test_a_start_that_fails_says_why_and_leaves_no_process(engine, model, settings, words):
    await until_ready(engine)
    before = processes("distributed.follower")
    with pytest.raises(EngineUnavailable, match=words):
        await NativeEngine(section(model, **settings)).start()
    assert processes("distributed.follower") == before
