"""Engines under contract: how each kind is opened, and how its events are read.

`KINDS` is the one place to add a kind: a function that gives a `Subject` whose engine is not started yet, and takes
down afterwards whatever it needed. `test_contract.py` then holds it to everything that `engines.api` promises.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import HttpUrl

from config.engines import EchoSettings, NativeSettings, RemoteSettings
from engines.api import (
    Done,
    Engine,
    Finish,
    GenerationEvent,
    GenerationRequest,
    Prompt,
    SamplingParams,
    Started,
    TextDelta,
    TextPrompt,
    Usage,
)
from engines.echo import EchoEngine
from engines.errors import EngineUnavailable
from engines.native.demo_model import resolve_demo_model
from engines.native.engine import NativeEngine
from engines.remote.engine import RemoteEngine
from gateway.app import create_app
from tests.gateway.live import serving

PROMPT = TextPrompt("The quick brown fox jumps over the lazy dog, again and")


@dataclass(frozen=True, slots=True)
class Subject:
    """An engine and what can be asked of it beyond the contract's core."""

    engine: Engine
    model: str
    tokenizes: bool = True
    counts_pieces: bool = True  # False: an upstream that tells token counts only at the end


Opener = Callable[[], AbstractAsyncContextManager[Subject]]


@asynccontextmanager
async def open_echo() -> AsyncGenerator[Subject, None]:
    yield Subject(EchoEngine(EchoSettings()), "echo")


@asynccontextmanager
async def open_remote() -> AsyncGenerator[Subject, None]:
    """Its upstream is our own gateway in front of an echo engine, on a real socket.

    That echo takes a little time for a token, so that a long answer is still on its way when a test cancels it.
    """
    with serving(create_app([EchoEngine(EchoSettings(token_delay_s=0.001))]), "echo") as upstream:
        settings = RemoteSettings(upstream=HttpUrl(f"{upstream.url}/v1"), served_model_name=("echo",))
        yield Subject(RemoteEngine(settings), "echo")


@asynccontextmanager
async def open_native() -> AsyncGenerator[Subject, None]:
    """SmolLM2 on CPU, its core in a process of its own, as `headrace serve` runs it."""
    try:
        resolve_demo_model()
    except EngineUnavailable as error:
        pytest.skip(error.message)
    settings = NativeSettings(device="cpu", kv_cache_memory="512MiB", served_model_name=("smollm2",))
    yield Subject(NativeEngine(settings), "smollm2")


KINDS: list[Any] = [
    pytest.param(open_echo, id="echo"),
    pytest.param(open_remote, id="remote"),
    pytest.param(open_native, id="native"),
]


# --- asking and reading -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Choice:
    text: str = ""
    num_tokens: int = 0
    token_ids: list[int] = field(default_factory=list[int])
    finish: Finish | None = None


@dataclass(slots=True)
class Answer:
    started: Started
    choices: list[Choice]
    usage: Usage

    @property
    def texts(self) -> list[str]:
        return [choice.text for choice in self.choices]


def asked(
    subject: Subject,
    prompt: Prompt = PROMPT,
    *,
    n: int = 1,
    stream: bool = True,
    echo: bool = False,
    truncate_prompt_tokens: int | None = None,
    **sampling: Any,
) -> GenerationRequest:
    """Greedy and 16 tokens long, whatever the model thinks, unless `sampling` says otherwise."""
    asked.count += 1
    return GenerationRequest(
        request_id=f"contract-{asked.count}",
        model=subject.model,
        prompt=prompt,
        sampling=SamplingParams(**{"temperature": 0.0, "max_tokens": 16, "ignore_eos": True, **sampling}),
        n=n,
        stream=stream,
        echo=echo,
        truncate_prompt_tokens=truncate_prompt_tokens,
    )


asked.count = 0


async def answer(subject: Subject, request: GenerationRequest) -> Answer:
    async with aclosing(subject.engine.generate(request)) as events:
        return read([event async for event in events], request)


def read(events: list[GenerationEvent], request: GenerationRequest) -> Answer:
    """Checks the grammar of events on the way: Started, pieces, one finish a choice, Done."""
    first, *pieces, final = events
    assert isinstance(first, Started)
    assert isinstance(final, Done)
    choices = [Choice() for _ in range(request.n)]
    for piece in pieces:
        assert isinstance(piece, TextDelta)
        choice = choices[piece.index]
        assert choice.finish is None, "a piece after its choice's finish"
        choice.text += piece.text
        choice.num_tokens += piece.num_tokens
        choice.token_ids += piece.token_ids
        choice.finish = piece.finish
    assert all(choice.finish is not None for choice in choices), "Done before every choice has finished"
    return Answer(first, choices, final.usage)


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """A bound on hanging, not a measure of speed."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.002)
