"""POST /v1/embeddings in OpenAI's shape: texts or token ids to vectors, as numbers or as base64 of their bytes.

What goes beyond OpenAI's fields is named as vLLM names it. Knows nothing of how vectors are made.
"""

from __future__ import annotations

import struct
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PlainValidator
from typing_extensions import TypedDict

from adapters.openai_completion_types import Prompts, read_prompts
from adapters.openai_types import MAX_TOKENS
from adapters.sse import to_json
from adapters.wire import NoEffect, WireModel, parse_body, refuse
from engines.api import EmbeddingRequest, Embeddings, TextPrompt, TokensPrompt

MAX_INPUTS = 2048  # OpenAI's limit
MAX_DIMENSIONS = 2**20  # beyond any model's, which has the last word
_FLOAT_BYTES = 4


class EmbeddingsRequest(WireModel):
    """`input`: a text, token ids, or an array of either."""

    model: str = Field(min_length=1, max_length=1024)
    input: Annotated[
        Prompts, PlainValidator(read_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]])
    ]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1, le=MAX_DIMENSIONS)
    user: Annotated[str | None, NoEffect("identifies an end user to OpenAI's abuse monitoring.")] = None

    # beyond OpenAI
    add_special_tokens: bool | None = None  # default: true; for text alone
    truncate_prompt_tokens: int | None = Field(default=None, ge=-1, le=MAX_TOKENS)
    truncation_side: Literal["left", "right"] | None = None  # default: right
    cache_salt: str | None = Field(default=None, min_length=1, max_length=128)

    def check(self) -> None:
        """Raises InvalidRequest for inputs that there may not be, and so many."""
        if len(self.input) > MAX_INPUTS:
            refuse("input", f"must hold at most {MAX_INPUTS} texts or arrays of token ids (got {len(self.input)})")
        if "" in self.input:
            place = "input" if len(self.input) == 1 else f"input[{self.input.index('')}]"
            refuse(place, "must not be an empty string")
        if self.truncate_prompt_tokens == 0:
            refuse("truncate_prompt_tokens", "must be at least 1, or -1 for as many tokens as the model takes (got 0)")


class Embedding(TypedDict):
    """`embedding`: numbers, or base64 of them as little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(TypedDict):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(TypedDict):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


@dataclass(frozen=True, slots=True)
class EmbeddingsCall:
    request: EmbeddingRequest
    as_base64: bool


def parse_embeddings(body: bytes, request_id: str) -> EmbeddingsCall:
    """Raises InvalidRequest naming the field."""
    wire = parse_body(EmbeddingsRequest, body)
    wire.check()
    specials = wire.add_special_tokens is not False
    request = EmbeddingRequest(
        request_id=request_id,
        model=wire.model,
        inputs=tuple(TextPrompt(one, specials) if isinstance(one, str) else TokensPrompt(one) for one in wire.input),
        dimensions=wire.dimensions,
        truncate_prompt_tokens=wire.truncate_prompt_tokens,
        truncation_side=wire.truncation_side or "right",
        cache_salt=wire.cache_salt or "",
        forwarded={} if wire.user is None else {"user": wire.user},
    )
    return EmbeddingsCall(request, wire.encoding_format == "base64")


def embeddings_body(embeddings: Embeddings, call: EmbeddingsCall) -> Iterator[bytes]:
    """An EmbeddingList, in a piece for each vector and two around them: two million numbers take a while to write."""
    written = _base64 if call.as_base64 else _numbers
    yield b'{"object":"list","data":['
    for index, vector in enumerate(embeddings.vectors):
        item: Embedding = {"object": "embedding", "index": index, "embedding": written(vector)}
        yield (b"," if index else b"") + to_json(item)
    usage: EmbeddingUsage = {"prompt_tokens": embeddings.prompt_tokens, "total_tokens": embeddings.prompt_tokens}
    yield b'],"model":' + to_json(call.request.model) + b',"usage":' + to_json(usage) + b"}"


def _base64(vector: bytes) -> str:
    return b64encode(vector).decode("ascii")


def _numbers(vector: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(vector) // _FLOAT_BYTES}f", vector))
