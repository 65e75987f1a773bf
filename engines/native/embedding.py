"""Embedding on the gateway's side: texts to tokens, tokens to the core, vectors back. One per engine.

A request's inputs go to the core a window at a time, so that one large request neither fills the core's queue nor
makes others wait behind all of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Literal

from engines.api import EmbeddingRequest, Embeddings, TextPrompt, TokensPrompt
from engines.errors import HeadraceError, InvalidRequest, PromptTooLong
from engines.native.answer import error_of
from engines.native.core_client import CoreClient
from engines.native.embedding_config import EmbeddingConfig
from engines.native.request_params import check_token_ids
from engines.native.tokenizer import Tokenizer
from engines.native.types import FINISH_ERROR, AddSequence, Pooling, Ready, TokenOutput, TokenParams

_WINDOW = 512  # inputs of one request that the core has at a time


class Embedder:
    """`max_tokens`: of an input, where the server has a limit of its own."""

    def __init__(
        self, config: EmbeddingConfig, tokenizer: Tokenizer, client: CoreClient, max_tokens: int | None
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._client = client
        self._max_tokens = max_tokens
        self._around = _num_around(tokenizer)

    def encode(self, request: EmbeddingRequest, ready: Ready) -> list[list[int]]:
        """Token ids of each input, checked. Takes a while for long texts. Raises InvalidRequest."""
        limit = min(ready.max_model_len, self._max_tokens or ready.max_model_len)
        kept = limit if request.truncate_prompt_tokens == -1 else request.truncate_prompt_tokens
        several = len(request.inputs) > 1
        inputs: list[list[int]] = []
        for place, one in enumerate(request.inputs):
            token_ids = self._encode_one(one, kept, request.truncation_side)
            field = f"input[{place}]" if several else "input"
            check_token_ids(token_ids, ready, field)
            if len(token_ids) > limit:
                raise PromptTooLong(
                    f"{field}: it has {len(token_ids)} tokens; the model takes at most {limit}. "
                    "truncate_prompt_tokens would cut it.",
                    field=field,
                )
            inputs.append(token_ids)
        return inputs

    def _encode_one(
        self, one: TextPrompt | TokensPrompt, kept: int | None, side: Literal["left", "right"]
    ) -> list[int]:
        if isinstance(one, TokensPrompt):
            return _truncated(list(one.token_ids), kept, side, (0, 0))
        text = self._config.prompt + one.text
        if self._config.lowercases:
            text = text.lower()
        token_ids = self._tokenizer.encode(text, add_special_tokens=one.add_special_tokens)
        return _truncated(token_ids, kept, side, self._around if one.add_special_tokens else (0, 0))

    def pooling(self, request: EmbeddingRequest, ready: Ready) -> Pooling:
        """Raises InvalidRequest for more dimensions than there are."""
        if request.dimensions is not None and request.dimensions > ready.embedding_size:
            raise InvalidRequest(
                f"dimensions: this model's vectors have {ready.embedding_size} numbers (got {request.dimensions})",
                field="dimensions",
            )
        return Pooling(self._config.mode, self._config.normalized, request.dimensions or 0)

    async def run(self, inputs: Sequence[list[int]], pooling: Pooling, cache_salt: str) -> Embeddings:
        """Closing or failing frees what the core has of it."""
        params = TokenParams(max_tokens=0, pooling=pooling)
        vectors = _Vectors(len(inputs))
        waiting = deque(enumerate(inputs))
        seq_ids: list[int] = []
        try:
            while True:
                while waiting and len(seq_ids) - vectors.num_done < _WINDOW:
                    place, token_ids = waiting.popleft()
                    seq_ids.append(self._client.new_seq_id())
                    message = AddSequence(seq_ids[-1], tuple(token_ids), params, cache_salt)
                    self._client.submit(message, _VectorSink(vectors, place))
                if vectors.num_done == len(inputs):
                    return Embeddings(tuple(vectors.vectors), sum(map(len, inputs)))
                await vectors.changed()
        finally:
            self._client.abort(seq_ids)


def _num_around(tokenizer: Tokenizer) -> tuple[int, int]:
    """How many special tokens the tokenizer puts before and after a text, the same around every text."""
    bare, whole = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    count = len(whole) - len(bare)
    after = next((n for n in range(count + 1) if whole[count - n : len(whole) - n] == bare), 0)
    return count - after, after


def _truncated(
    token_ids: list[int], kept: int | None, side: Literal["left", "right"], around: tuple[int, int]
) -> list[int]:
    """At most `kept` of them, the special ones before and after among them."""
    if kept is None or len(token_ids) <= kept:
        return token_ids
    before = min(around[0], kept)
    after = min(around[1], kept - before)
    text = token_ids[before : len(token_ids) - after]
    room = kept - before - after
    text = text[:room] if side == "right" else text[len(text) - room :]
    return token_ids[:before] + text + token_ids[len(token_ids) - after :]


class _Vectors:
    """What has come of one request's vectors."""

    def __init__(self, count: int) -> None:
        self.vectors = [b""] * count
        self.num_done = 0
        self._error: HeadraceError | None = None
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Returns when there is more than before. Raises what ended the request early."""
        await self._changed.wait()
        self._changed.clear()
        if self._error is not None:
            raise self._error

    def put(self, place: int, vector: bytes) -> None:
        self.vectors[place] = vector
        self.num_done += 1
        self._changed.set()

    def fail(self, error: HeadraceError) -> None:
        self._error = error
        self._changed.set()


class _VectorSink:
    """Stands between the core's client and one vector."""

    __slots__ = ("_place", "_vectors")

    def __init__(self, vectors: _Vectors, place: int) -> None:
        self._vectors = vectors
        self._place = place

    def push(self, output: TokenOutput) -> None:
        if output.finish == FINISH_ERROR:
            self._vectors.fail(error_of(output.error))
        else:
            self._vectors.put(self._place, output.embedding)

    def fail(self, error: HeadraceError) -> None:
        self._vectors.fail(error)
