"""EchoEngine: the engine contract in front of no model. It answers with what it was asked.

For demos, for tests that need exact answers, and for load tests of the gateway alone. Nothing is sampled, so
temperature and its kin, penalties, biases and seeds have no say.

The whole answer, stop conditions included, is decided before its first token; what remains per token is one
`TextDelta`, one turn of the event loop and the configured delay. Knows nothing of HTTP.

An embedding counts tokens, each in the place that its id falls on: what shares tokens is near.
"""

from __future__ import annotations

import asyncio
import math
import struct
import time
from collections.abc import AsyncGenerator, Sequence
from itertools import accumulate

from config.engines import EchoSettings
from engines.api import (
    Done,
    EmbeddingRequest,
    Embeddings,
    EngineStats,
    GenerationEvent,
    GenerationRequest,
    Health,
    ModelCard,
    Prompt,
    PromptDetails,
    Started,
    TextPrompt,
    Tokenized,
    TokensPrompt,
    Usage,
    WatermarkParams,
    WatermarkReport,
)
from engines.echo.answer import write_answer
from engines.echo.prompt import read_prompt, tokens_of
from engines.echo.tokens import token_id, token_text
from engines.errors import EngineUnavailable, InvalidRequest, PromptTooLong, UnsupportedByEngine

_EMBEDDING_SIZE = 64


class EchoEngine:
    """See the module's docstring. `served_model_name` defaults to `echo`."""

    def __init__(self, settings: EchoSettings) -> None:
        name, *aliases = settings.served_model_name or ("echo",)
        self._settings = settings
        self._card = ModelCard(
            name=name, aliases=tuple(aliases), max_model_len=settings.max_model_len, created=int(time.time())
        )
        self._open = False
        self._running = 0
        self._prompt_tokens = 0
        self._generated_tokens = 0

    @property
    def models(self) -> Sequence[ModelCard]:
        return (self._card,)

    async def start(self) -> None:
        self._open = True

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        if not self._open:
            raise EngineUnavailable("The echo engine is not running.")
        prompt = read_prompt(request, self._settings.max_model_len)
        steps = write_answer(prompt, request)
        delay_s = self._settings.token_delay_s
        self._running += 1
        self._prompt_tokens += len(prompt.tokens)
        generated = 0
        try:
            yield Started(prompt_tokens=len(prompt.tokens), prompt=_details(prompt.tokens) if request.echo else None)
            for step in steps:
                await asyncio.sleep(delay_s * step[0].num_tokens)
                for delta in step:
                    yield delta
                    generated += delta.num_tokens
            yield Done(Usage(prompt_tokens=len(prompt.tokens), completion_tokens=generated))
        finally:
            self._running -= 1
            self._generated_tokens += generated

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        if not self._open:
            raise EngineUnavailable("The echo engine is not running.")
        size = request.dimensions or _EMBEDDING_SIZE
        if size > _EMBEDDING_SIZE:
            raise InvalidRequest(
                f"dimensions: this model's vectors have {_EMBEDDING_SIZE} numbers (got {size})", field="dimensions"
            )
        limit = self._settings.max_model_len
        kept = limit if request.truncate_prompt_tokens == -1 else request.truncate_prompt_tokens
        inputs = [tokens_of(one) for one in request.inputs]
        if kept is not None:
            left = request.truncation_side == "left"
            inputs = [tokens[max(len(tokens) - kept, 0) :] if left else tokens[:kept] for tokens in inputs]
        longest = max(map(len, inputs))
        if longest > limit:
            raise PromptTooLong(f"An input has {longest} tokens; this model takes {limit}.", field="input")
        num_tokens = sum(map(len, inputs))
        self._prompt_tokens += num_tokens
        return Embeddings(tuple(_vector(tokens, size) for tokens in inputs), num_tokens)

    async def tokenize(self, model: str, prompt: Prompt, *, with_texts: bool = False) -> Tokenized:  # noqa: ARG002
        tokens = tokens_of(prompt)
        ids = tuple(map(token_id, tokens))
        if not with_texts:
            return Tokenized(ids, self._settings.max_model_len)
        ends = list(accumulate(len(token.encode("utf-8", "replace")) for token in tokens))
        offsets = tuple(zip([0, *ends], ends, strict=False))
        return Tokenized(ids, self._settings.max_model_len, tuple(tokens), "".join(tokens), offsets)

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:  # noqa: ARG002
        return "".join(map(token_text, token_ids))

    async def detect_watermark(
        self,
        model: str,  # noqa: ARG002
        content: TextPrompt | TokensPrompt,  # noqa: ARG002
        watermark: WatermarkParams,  # noqa: ARG002
    ) -> WatermarkReport:
        raise UnsupportedByEngine("The echo engine samples nothing, so there is no watermark to look for.")

    async def health(self) -> Health:
        return Health(True) if self._open else Health(False, "not running")

    def stats(self) -> EngineStats:
        return EngineStats(
            running=self._running, prompt_tokens=self._prompt_tokens, generated_tokens=self._generated_tokens
        )

    async def aclose(self) -> None:
        self._open = False


def _vector(tokens: Sequence[str], size: int) -> bytes:
    """`size` numbers, of length 1 together."""
    counts = [0.1] * _EMBEDDING_SIZE  # not 0, or a few of them might be a vector without a direction
    for token in tokens:
        counts[token_id(token) * 0x9E3779B1 % 2**32 >> 26] += 1.0
    length = math.hypot(*counts[:size])
    return struct.pack(f"<{size}f", *(count / length for count in counts[:size]))


def _details(tokens: Sequence[str]) -> PromptDetails:
    return PromptDetails(text="".join(tokens), token_ids=tuple(map(token_id, tokens)))
