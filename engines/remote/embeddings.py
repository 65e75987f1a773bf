"""An EmbeddingRequest as the JSON body of an upstream's /embeddings, and its answer as vectors.

Asks for numbers, which every upstream gives, and takes base64 from those that give nothing else.
"""

from __future__ import annotations

import binascii
import struct
from base64 import b64decode
from collections.abc import Sequence
from typing import Any

from engines.api import EmbeddingRequest, Embeddings, TextPrompt, TokensPrompt
from engines.errors import UnsupportedByEngine, UpstreamError
from engines.remote.wire import EmbeddingsAnswer

EMBEDDINGS_PATH = "/embeddings"


def embedding_fields(request: EmbeddingRequest, *, model: str) -> dict[str, Any]:
    """Says only what the request says. Raises UnsupportedByEngine for texts mixed with tokens."""
    texts = [one for one in request.inputs if isinstance(one, TextPrompt)]
    if texts and len(texts) < len(request.inputs):
        raise UnsupportedByEngine("An upstream takes texts or arrays of token ids, not both at once.", field="input")
    fields: dict[str, Any] = {**request.forwarded, "model": model, "input": [_written(one) for one in request.inputs]}
    if texts and not texts[0].add_special_tokens:
        fields["add_special_tokens"] = False
    if request.dimensions is not None:
        fields["dimensions"] = request.dimensions
    if request.truncate_prompt_tokens is not None:
        fields["truncate_prompt_tokens"] = request.truncate_prompt_tokens
        fields["truncation_side"] = request.truncation_side
    if request.cache_salt:
        fields["cache_salt"] = request.cache_salt
    return fields


def read_embeddings(answer: EmbeddingsAnswer, request: EmbeddingRequest) -> Embeddings:
    """Raises UpstreamError for an answer that is not one vector per input."""
    data = sorted(answer.data, key=lambda item: item.index)
    if [item.index for item in data] != list(range(len(request.inputs))):
        raise UpstreamError(f"The upstream answered {len(data)} of {len(request.inputs)} inputs.")
    usage = answer.usage
    return Embeddings(tuple(_packed(item.embedding) for item in data), 0 if usage is None else usage.prompt_tokens)


def _written(one: TextPrompt | TokensPrompt) -> str | Sequence[int]:
    return one.text if isinstance(one, TextPrompt) else one.token_ids


def _packed(embedding: list[float] | str) -> bytes:
    if not isinstance(embedding, str):
        return struct.pack(f"<{len(embedding)}f", *embedding)
    try:
        return b64decode(embedding, validate=True)
    except binascii.Error as error:
        raise UpstreamError(f"The upstream's answer holds a vector that is not base64: {error}.") from error
