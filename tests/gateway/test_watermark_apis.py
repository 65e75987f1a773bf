"""Every API takes `watermark` as a bool or an object, over a server that marks what does not say whether to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from config.engines import NativeSettings
from engines.native.engine import NativeEngine
from gateway.app import create_app
from tests.gateway.live import Live, serving

SERVERS_KEY = "the server's own key"
OWN = {"scheme": "synthid", "key": "a tenant's key"}
NUM_TOKENS = 64
ASKS: list[Any] = [None, True, OWN, False]

Text = Callable[[Any], str]
APIS: dict[str, tuple[str, Callable[[str], dict[str, Any]], Text]] = {
    "chat": (
        "/v1/chat/completions",
        lambda said: {"messages": [{"role": "user", "content": said}], "max_tokens": NUM_TOKENS},
        lambda answer: answer["choices"][0]["message"]["content"],
    ),
    "completions": (
        "/v1/completions",
        lambda said: {"prompt": said, "max_tokens": NUM_TOKENS, "ignore_eos": True},
        lambda answer: answer["choices"][0]["text"],
    ),
    "responses": (
        "/v1/responses",
        lambda said: {"input": said, "max_output_tokens": NUM_TOKENS},
        lambda answer: answer["output"][0]["content"][0]["text"],
    ),
    "messages": (
        "/v1/messages",
        lambda said: {"messages": [{"role": "user", "content": said}], "max_tokens": NUM_TOKENS},
        lambda answer: answer["content"][0]["text"],
    ),
}


@pytest.fixture(scope="module")
def marking(smollm2_gguf: Path) -> Iterator[Live]:
    section = NativeSettings.model_validate(
        {
            "model": str(smollm2_gguf),
            "device": "cpu",
            "kv_cache_memory": "256MiB",
            "served_model_name": ["smollm2"],
            "watermark": True,
            "watermark_scheme": "gumbel",
            "watermark_key": SERVERS_KEY,
        }
    )
    with serving(create_app([NativeEngine(section)]), "smollm2") as server:
        yield server


async def ask(client: httpx.AsyncClient, api: str, mark: Any, topic: str) -> str:
    said = f"Write a long story about {topic}, with many details and names."
    if api == "tgi":
        said = f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"
        parameters = {"max_new_tokens": NUM_TOKENS, "do_sample": True, "seed": 5}
        if mark is not None:
            parameters["watermark"] = mark
        answer = await client.post("/generate", json={"inputs": said, "parameters": parameters})
        assert answer.status_code == 200, answer.text
        return answer.json()["generated_text"]
    path, body, text = APIS[api]
    fields = {"model": "smollm2", "temperature": 1.0, **body(said)}
    answer = await client.post(path, json=fields if mark is None else {**fields, "watermark": mark})
    assert answer.status_code == 200, answer.text
    return text(answer.json())


async def is_marked(client: httpx.AsyncClient, text: str, **fields: Any) -> bool:
    found = (await client.post("/v1/watermark/detect", json={"text": text, "return_tokens": False, **fields})).json()
    return found["p_value"] < 1e-6


@pytest.mark.parametrize("api", [*APIS, "tgi"])
async def test_every_api_marks_as_it_is_asked_to(marking: Live, api: str):
    async with httpx.AsyncClient(base_url=marking.url, timeout=120) as client:
        texts = await asyncio.gather(*(ask(client, api, mark, f"the {i + 3} rivers") for i, mark in enumerate(ASKS)))
        by_server = [await is_marked(client, text) for text in texts]
        by_tenant = [await is_marked(client, text, **OWN) for text in texts]
    # TGI's clients always send false, so there it says no more than nothing at all.
    assert by_server == [True, True, False, api == "tgi"]
    assert by_tenant == [False, False, True, False]


async def test_no_route_shows_a_key(marking: Live):
    async with httpx.AsyncClient(base_url=marking.url, timeout=60) as client:
        for path in ("/info", "/v1/models", "/metrics", "/openapi.json", "/health/ready", "/version"):
            shown = (await client.get(path)).text
            assert SERVERS_KEY not in shown
        for body in ({"text": "a b c d e f", **OWN}, {"text": "a", "key": OWN["key"], "scheme": "none"}):
            assert OWN["key"] not in (await client.post("/v1/watermark/detect", json=body)).text
