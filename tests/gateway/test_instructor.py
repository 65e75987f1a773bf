"""instructor, as published, over the OpenAI and Anthropic SDKs: pydantic models out of a real model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest
from anthropic import Anthropic
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict, Field

from tests.gateway.live import Live

instructor = pytest.importorskip("instructor", reason="instructor is installed without its dependencies")

QUESTION: Any = [{"role": "user", "content": "Name a city and say how many people live there."}]
ASKED: Any = {"model": "smollm2", "messages": QUESTION, "max_retries": 0, "temperature": 0, "max_tokens": 120}
MODES = ["TOOLS", "JSON_SCHEMA", "RESPONSES_TOOLS"]


class City(BaseModel):
    """A city. Nothing but its fields: a schema that leaves others open leaves a small model making up others."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=30)
    continent: Literal["Africa", "America", "Asia", "Europe", "Oceania"]
    population: int = Field(ge=0, le=100_000_000)


class Mood(BaseModel):
    """How somebody feels."""

    mood: Literal["glad", "sad"]


@pytest.fixture
def openai(native_live: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{native_live.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        yield client


def asked_in(mode: str) -> Any:
    if mode != "RESPONSES_TOOLS":
        return ASKED
    return {**{key: value for key, value in ASKED.items() if key != "max_tokens"}, "max_output_tokens": 120}


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_is_the_model_that_was_asked_for(openai: OpenAI, mode: str):
    client = instructor.from_openai(openai, mode=instructor.Mode[mode])
    city = client.chat.completions.create(response_model=City, **asked_in(mode))
    assert isinstance(city, City)


def test_json_mode_gives_json_that_the_prompt_describes(openai: OpenAI):
    # One key and two words: as much of a prompt as so small a model follows.
    client = instructor.from_openai(openai, mode=instructor.Mode.JSON)
    ask: Any = {**ASKED, "messages": [{"role": "user", "content": 'Answer with {"mood": "glad"}.'}]}
    assert client.chat.completions.create(response_model=Mood, **ask).mood in ("glad", "sad")


def test_a_stream_of_partial_models_ends_in_a_whole_one(openai: OpenAI):
    client = instructor.from_openai(openai, mode=instructor.Mode.TOOLS)
    told = list(client.chat.completions.create_partial(response_model=City, **ASKED))
    assert len(told) > 2
    assert City.model_validate(told[-1].model_dump())


def test_the_answer_comes_with_the_completion_that_it_was_read_from(openai: OpenAI):
    client = instructor.from_openai(openai, mode=instructor.Mode.TOOLS)
    city, completion = client.chat.completions.create_with_completion(response_model=City, **ASKED)
    (call,) = completion.choices[0].message.tool_calls
    assert City.model_validate_json(call.function.arguments).model_dump() == city.model_dump()
    assert completion.usage.completion_tokens > 0


async def test_async_clients_get_the_same(openai: OpenAI, native_live: Live):
    whole = instructor.from_openai(openai, mode=instructor.Mode.TOOLS).create(response_model=City, **ASKED)
    async with AsyncOpenAI(base_url=f"{native_live.url}/v1", api_key="none", max_retries=0, timeout=300) as sdk:
        client = instructor.from_openai(sdk, mode=instructor.Mode.TOOLS)
        assert (await client.create(response_model=City, **ASKED)).model_dump() == whole.model_dump()


def test_the_anthropic_api_gives_them_too(native_live: Live):
    with Anthropic(base_url=native_live.url, api_key="none", max_retries=0, timeout=300) as sdk:
        client = instructor.from_anthropic(sdk, mode=instructor.Mode.TOOLS)
        ask: Any = {key: value for key, value in ASKED.items() if key != "temperature"}
        assert isinstance(client.create(response_model=City, **ask), City)
