"""A mark asked for over HTTP is found again over HTTP, in text that came out of a real model."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.gateway.live import Live

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPTS = ["The river", "Once upon a time", "In the year 1912", "My favourite food is"]
SCHEMES: list[dict[str, Any]] = [
    {"scheme": "green_list", "key": "k1"},
    {"scheme": "green_list", "key": "k1", "self_hash": True, "context_width": 3},
    {"scheme": "gumbel", "key": "k1"},
    {"scheme": "synthid", "key": "k1"},
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(native_live: Live):
    async with httpx.AsyncClient(base_url=native_live.url, timeout=300) as client:
        yield client


async def generated(client: httpx.AsyncClient, prompt: str, **fields: Any) -> str:
    body = {"model": "smollm2", "prompt": prompt, "max_tokens": 120, "seed": 3, "ignore_eos": True, **fields}
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["text"]


async def detected(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post("/v1/watermark/detect", json=fields)
    assert response.status_code == 200, response.text
    return response.json()


async def test_each_row_of_a_mixed_batch_carries_its_own_mark_and_no_other(client):
    asked = [*SCHEMES, True, None, False]
    texts = await asyncio.gather(
        *(
            generated(client, prompt, temperature=1.0, **({} if mark is None else {"watermark": mark}))
            for mark in asked
            for prompt in PROMPTS[:2]
        )
    )
    for i, text in enumerate(texts):
        own = asked[i // 2]
        for scheme in SCHEMES:
            found = await detected(client, text=text, **scheme)
            assert found["watermarked"] == (own == scheme), (own, scheme, found["p_value"])
        assert (await detected(client, text=text))["watermarked"] == (own is True)


async def test_a_character_of_several_tokens_is_told_once(client):
    text = " snow ☃, a mill 카우 by the river 🏞 and more of it"
    found = await detected(client, text=text)
    texts = [token["text"] for token in found["tokens"]]
    assert "".join(texts) == text
    assert "" in texts  # a token that ends inside a character
    by_ids = await detected(client, tokens=[token["id"] for token in found["tokens"]][:-20])
    assert text.startswith("".join(token["text"] for token in by_ids["tokens"]).rstrip("\ufffd"))


async def test_detection_colours_every_token(client):
    text = await generated(client, PROMPTS[2], temperature=1.0, watermark=True)
    found = await detected(client, text=text)
    assert "".join(token["text"] for token in found["tokens"]) == text
    assert found["num_tokens"] == len(found["tokens"])
    marks = [token["mark"] for token in found["tokens"] if token["mark"] is not None]
    assert len(marks) == found["num_tokens_scored"]
    assert sum(marks) == found["statistic"]
    by_ids = await detected(client, tokens=[token["id"] for token in found["tokens"]], return_tokens=False)
    assert by_ids == found | {"tokens": None}


async def test_a_greedy_answer_is_marked_by_green_lists_alone(client):
    plain = await generated(client, PROMPTS[0], temperature=0.0, max_tokens=16)
    assert await generated(client, PROMPTS[0], temperature=0.0, max_tokens=16, watermark={"scheme": "gumbel"}) == plain
    assert await generated(client, PROMPTS[0], temperature=0.0, max_tokens=16, watermark={"scheme": "synthid"}) == plain
    assert await generated(client, PROMPTS[0], temperature=0.0, max_tokens=16, watermark={"delta": 4.0}) != plain


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "text"),
        ({"text": "a", "tokens": [1]}, "text"),
        ({"tokens": [10**6]}, "tokens"),
        ({"text": "a", "scheme": "gumbel", "gamma": 0.5}, "gamma"),
        ({"text": "a", "key": 1234567}, "key"),
        ({"text": "a", "false_positive_rate": 0}, "false_positive_rate"),
    ],
)
async def test_detection_refuses_by_name_and_shows_no_key(client, fields, field):
    response = await client.post("/v1/watermark/detect", json=fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert "1234567" not in response.text


async def test_generation_refuses_by_name_and_shows_no_key(client):
    for mark, field in (
        ({"scheme": "synthid", "delta": 1.0}, "watermark.delta"),
        ({"key": 1234567}, "watermark.key"),
        ("yes", "watermark"),
    ):
        body = {"model": "smollm2", "prompt": "a", "watermark": mark}
        response = await client.post("/v1/completions", json=body)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == field
        assert "1234567" not in response.text
