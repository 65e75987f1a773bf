"""POST /v1/embeddings over an engine that only counts, and over the echo engine on a real socket."""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import Any

import openai
import pytest

from engines.errors import EngineUnavailable, Overloaded, UnsupportedByEngine
from tests.gateway.asgi import Call, app_of, post
from tests.gateway.live import Live
from tests.gateway.scripted import ScriptedEngine, forever, turn

PATH = "/v1/embeddings"
ASKED: dict[str, Any] = {"model": "scripted", "input": ["a", "b", "c"]}


async def test_every_input_gets_its_vector_and_tokens_are_counted():
    engine = ScriptedEngine()
    app = app_of(engine)
    call = await post(app, PATH, ASKED).run()
    assert call.status == 200
    answer = call.json()
    assert [item["embedding"] for item in answer["data"]] == [[0.0, 0.5], [1.0, 0.5], [2.0, 0.5]]
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert engine.embedding_requests[0].model == "scripted"
    metrics = (await Call(app, path="/metrics").run()).body.decode()
    assert 'headrace_prompt_tokens_total{model="scripted"} 7.0' in metrics
    assert 'headrace_requests_total{route="/v1/embeddings",status="200"} 1.0' in metrics


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnsupportedByEngine("It cannot embed.", field="model"), 400),
        (Overloaded("full"), 503),
        (EngineUnavailable("gone"), 503),
        (ZeroDivisionError(), 500),
    ],
    ids=["unsupported", "overloaded", "unavailable", "bug"],
)
async def test_what_the_engine_refuses_is_told_in_openais_shape(error: Exception, status: int):
    engine = ScriptedEngine()

    async def fail() -> None:
        raise error

    engine.embed_step = fail
    call = await post(app_of(engine), PATH, ASKED).run()
    assert call.status == status
    assert set(call.json()["error"]) == {"message", "type", "param", "code"}
    assert engine.num_open == 0


async def test_a_client_that_leaves_cancels_its_call():
    engine = ScriptedEngine()
    engine.embed_step = forever
    call = post(app_of(engine), PATH, ASKED)
    task = call.start()
    await turn()
    assert engine.num_open == 1
    call.leave()
    await asyncio.wait_for(task, 5)
    assert engine.num_open == 0
    assert call.sent == []


async def test_calls_over_the_limit_are_refused_and_permits_come_back():
    engine = ScriptedEngine()
    gate = asyncio.Event()
    engine.embed_step = gate.wait
    app = app_of(engine, max_concurrent_requests=1)
    first = post(app, PATH, ASKED)
    task = first.start()
    await turn()
    assert (await post(app, PATH, ASKED).run()).status == 503
    gate.set()
    await task
    assert first.status == 200
    assert (await post(app, PATH, ASKED).run()).status == 200


@pytest.mark.parametrize("any_model", [False, True])
async def test_a_request_names_a_model_unless_any_will_do(any_model: bool):
    app = app_of(ScriptedEngine(), any_model=any_model)
    call = await post(app, PATH, {"input": "a"}).run()
    assert call.status == (200 if any_model else 400)
    assert (await post(app, PATH, {"input": "a", "model": "no-such"}).run()).status == (200 if any_model else 404)


async def test_without_the_key_nothing_is_embedded():
    app = app_of(ScriptedEngine(), api_key="k")
    assert (await post(app, PATH, ASKED).run()).status == 401
    assert (await post(app, PATH, ASKED, {"authorization": "Bearer k"}).run()).status == 200


def test_the_openai_sdk_reads_numbers_and_base64_alike(echo_live: Live):
    with openai.OpenAI(base_url=f"{echo_live.url}/v1", api_key="none", max_retries=0) as client:
        ask = client.embeddings.create
        texts = ["the cat sat", "the cat ran", "une phrase"]
        by_default = ask(model="echo", input=texts)  # the SDK asks for base64 and decodes it
        numbers = ask(model="echo", input=texts, encoding_format="float")
        coded = ask(model="echo", input=texts, encoding_format="base64")
        short = ask(model="echo", input=texts[0], dimensions=8).data[0].embedding
        with pytest.raises(openai.BadRequestError, match="dimensions"):
            ask(model="echo", input="a", dimensions=65)
    vectors = [item.embedding for item in by_default.data]
    assert vectors == [pytest.approx(item.embedding) for item in numbers.data]
    decoded = [struct.unpack("<64f", base64.b64decode(str(item.embedding))) for item in coded.data]
    assert vectors == [pytest.approx(vector) for vector in decoded]
    assert len(short) == 8
    assert sum(x * x for x in short) == pytest.approx(1)
