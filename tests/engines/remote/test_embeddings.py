from __future__ import annotations

import base64
import json
import struct
from typing import Any

import httpx
import pytest

from config.engines import RemoteSettings
from engines.api import EmbeddingRequest, Embeddings, TextPrompt, TokensPrompt
from engines.errors import UnsupportedByEngine, UpstreamError
from engines.remote import RemoteEngine

PAIR = (TextPrompt("a"), TextPrompt("b"))


async def embedded(answer: Any, *, status: int = 200, **fields: Any) -> tuple[dict[str, Any], Embeddings]:
    """What the upstream was asked, and what became of its answer."""
    asked: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(status, json=answer)

    settings = RemoteSettings.model_validate(
        {"upstream": "http://upstream.test/v1", "served_model_name": ("m",), "upstream_model": "theirs"}
    )
    remote = RemoteEngine(settings, transport=httpx.MockTransport(handle))
    await remote.start()
    try:
        request = EmbeddingRequest(**{"request_id": "r", "model": "m", "inputs": PAIR, **fields})
        embeddings = await remote.embed(request)
    finally:
        await remote.aclose()
    assert str(asked[0].url) == "http://upstream.test/v1/embeddings"
    assert remote.stats().running == 0
    return json.loads(asked[0].content), embeddings


def item(index: int, embedding: Any) -> dict[str, Any]:
    return {"object": "embedding", "index": index, "embedding": embedding}


async def test_only_what_was_asked_is_said():
    answer = {"data": [item(0, [1.0, 2.0]), item(1, [3.0, 4.5])], "usage": {"prompt_tokens": 5, "total_tokens": 5}}
    body, embeddings = await embedded(answer)
    assert body == {"model": "theirs", "input": ["a", "b"]}
    assert embeddings == Embeddings((struct.pack("<2f", 1, 2), struct.pack("<2f", 3, 4.5)), 5)


async def test_every_field_is_passed_on():
    inputs = (TextPrompt("a", False), TextPrompt("b", False))
    answer = {"data": [item(0, [1.0]), item(1, [3.0])]}
    body, _ = await embedded(
        answer, inputs=inputs, cache_salt="s", dimensions=1, truncate_prompt_tokens=8, forwarded={"user": "u"}
    )
    assert body == {
        "user": "u",
        "model": "theirs",
        "input": ["a", "b"],
        "add_special_tokens": False,
        "dimensions": 1,
        "truncate_prompt_tokens": 8,
        "truncation_side": "right",
        "cache_salt": "s",
    }
    tokens, _ = await embedded(answer, inputs=(TokensPrompt((1, 2)), TokensPrompt((3,))))
    assert tokens["input"] == [[1, 2], [3]]


async def test_base64_and_any_order_are_understood():
    coded = base64.b64encode(struct.pack("<2f", 1, 2)).decode()
    _, embeddings = await embedded({"data": [item(1, [3.0, 4.0]), item(0, coded)]})
    assert embeddings == Embeddings((struct.pack("<2f", 1, 2), struct.pack("<2f", 3, 4)), 0)


@pytest.mark.parametrize(
    "data", [[], [item(0, [1.0])], [item(0, [1.0]), item(0, [1.0])], [item(0, [1.0]), item(1, "?")], [item(0, {}), {}]]
)
async def test_an_answer_that_is_not_a_vector_for_each_is_the_upstreams_failure(data: list[Any]):
    with pytest.raises(UpstreamError):
        await embedded({"data": data})


async def test_an_upstream_without_the_route_cannot_embed():
    with pytest.raises(UnsupportedByEngine, match="no embeddings route"):
        await embedded({"detail": "Not Found"}, status=404)


async def test_the_upstreams_refusal_keeps_its_status_and_words():
    with pytest.raises(UpstreamError, match="too long") as refused:
        await embedded({"error": {"message": "input is too long", "param": "input"}}, status=400)
    assert (refused.value.status, refused.value.field) == (400, "input")


async def test_texts_mixed_with_tokens_are_refused():
    with pytest.raises(UnsupportedByEngine):
        await embedded({}, inputs=(TextPrompt("a"), TokensPrompt((1,))))
