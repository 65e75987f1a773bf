"""An engine that plays a script, and keeps count of what is done with its generators."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

from engines.api import (
    Done,
    EmbeddingRequest,
    Embeddings,
    EngineStats,
    Finish,
    GenerationEvent,
    GenerationRequest,
    Health,
    ModelCard,
    Prompt,
    Started,
    TextDelta,
    TextPrompt,
    Tokenized,
    TokensPrompt,
    Usage,
    WatermarkParams,
    WatermarkReport,
)
from engines.errors import UnsupportedByEngine

Step = GenerationEvent | Exception | Callable[[], Awaitable[object]]
"""An event to yield, an exception to raise, or something to await."""

STARTED = Started(prompt_tokens=3)
DONE = Done(Usage(prompt_tokens=3, completion_tokens=2))


def text(piece: str, index: int = 0) -> TextDelta:
    return TextDelta(index, piece, 1)


def last(piece: str, index: int = 0) -> TextDelta:
    return TextDelta(index, piece, 1, finish=Finish("stop"))


HELLO: tuple[Step, ...] = (STARTED, text("Hel"), last("lo"), DONE)


async def forever() -> None:
    await asyncio.Event().wait()


async def turn() -> None:
    """Let everything else that is ready run."""
    for _ in range(10):
        await asyncio.sleep(0)


class ScriptedEngine:
    """Plays `scripts[i]` for the i-th request, the last one for all further requests."""

    def __init__(self, *scripts: Sequence[Step], name: str = "scripted", aliases: tuple[str, ...] = ()) -> None:
        self._scripts = scripts or (HELLO,)
        self._card = ModelCard(name=name, aliases=aliases, created=1)
        self.requests: list[GenerationRequest] = []
        self.embedding_requests: list[EmbeddingRequest] = []
        self.embed_step: Callable[[], Awaitable[object]] = turn
        self.num_open = 0  # generators and embeddings that began and have not ended
        self.num_yielded = 0
        self.state = "new"
        self.health_answer: Health | Exception = Health(True)
        self.start_step: Step | None = None

    @property
    def models(self) -> Sequence[ModelCard]:
        return (self._card,)

    async def start(self) -> None:
        self.state = "starting"
        if isinstance(self.start_step, Exception):
            raise self.start_step
        if callable(self.start_step):
            await self.start_step()
        self.state = "started"

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        script = self._scripts[min(len(self.requests), len(self._scripts) - 1)]
        self.requests.append(request)
        if isinstance(script[0], Exception):
            raise script[0]  # refused, so there is nothing to clean up
        self.num_open += 1
        try:
            for step in script:
                if isinstance(step, Exception):
                    raise step
                if callable(step):
                    await step()
                    continue
                yield step
                self.num_yielded += 1
        finally:
            await asyncio.sleep(0)  # as an engine that tells its upstream or its core
            self.num_open -= 1

    async def tokenize(self, model: str, prompt: Prompt, *, with_texts: bool = False) -> Tokenized:  # noqa: ARG002
        raise UnsupportedByEngine("The scripted engine has no tokenizer.")

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:  # noqa: ARG002
        raise UnsupportedByEngine("The scripted engine has no tokenizer.")

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Each input's vector holds its place."""
        self.embedding_requests.append(request)
        self.num_open += 1
        try:
            await self.embed_step()
        finally:
            self.num_open -= 1
        return Embeddings(tuple(struct.pack("<2f", place, 0.5) for place in range(len(request.inputs))), 7)

    async def detect_watermark(
        self,
        model: str,  # noqa: ARG002
        content: TextPrompt | TokensPrompt,  # noqa: ARG002
        watermark: WatermarkParams,  # noqa: ARG002
    ) -> WatermarkReport:
        raise UnsupportedByEngine("The scripted engine has no tokenizer.")

    async def health(self) -> Health:
        if isinstance(self.health_answer, Exception):
            raise self.health_answer
        return self.health_answer

    def stats(self) -> EngineStats:
        return EngineStats(running=self.num_open)

    async def aclose(self) -> None:
        self.state = "closed"
