"""What the openai SDK builds on top of the routes: parsing, and events of its own made of a stream; sync and async."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from itertools import groupby, pairwise
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

from tests.gateway.live import Live

MESSAGES: Any = [{"role": "user", "content": "Name a city and its continent."}]
CHAT: Any = {"model": "smollm2", "messages": MESSAGES, "temperature": 0, "max_tokens": 80}
RESPONSE: Any = {"model": "smollm2", "input": "Name a city.", "temperature": 0, "max_output_tokens": 80}


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=30)
    continent: Literal["Africa", "America", "Asia", "Europe", "Oceania"]


TOOLS: Any = {"tools": [openai.pydantic_function_tool(City)], "tool_choice": "required", "parallel_tool_calls": False}


@pytest.fixture
def client(native_live: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{native_live.url}/v1", api_key="none", max_retries=0, timeout=300) as sdk:
        yield sdk


@pytest.fixture
async def async_client(native_live: Live) -> AsyncGenerator[AsyncOpenAI, None]:
    async with AsyncOpenAI(base_url=f"{native_live.url}/v1", api_key="none", max_retries=0, timeout=300) as sdk:
        yield sdk


def in_order(kinds: list[str]) -> list[str]:
    """Each kind once for every run of it."""
    return [kind for kind, _ in groupby(kinds)]


def test_events_of_a_chat_grow_to_the_parsed_answer(client: OpenAI):
    with client.chat.completions.stream(response_format=City, logprobs=True, **CHAT) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    told = [event.snapshot for event in events if event.type == "content.delta"]
    assert all(later.startswith(earlier) for earlier, later in pairwise(told))
    (done,) = [event for event in events if event.type == "content.done"]
    assert told[-1] == done.content == final.choices[0].message.content
    assert isinstance(done.parsed, City)
    assert done.parsed == final.choices[0].message.parsed
    (logprobs,) = [event for event in events if event.type == "logprobs.content.done"]
    assert "".join(entry.token for entry in logprobs.content) == done.content


def test_events_of_a_call_grow_to_its_parsed_arguments(client: OpenAI):
    with client.chat.completions.stream(**TOOLS, **CHAT) as stream:
        events = list(stream)
        assert stream.get_final_completion().choices[0].message.content is None
    told = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    (done,) = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert len(told) > 2
    assert "".join(event.arguments_delta for event in told) == told[-1].arguments == done.arguments
    assert isinstance(done.parsed_arguments, City)
    assert {"content.delta", "refusal.delta"}.isdisjoint(event.type for event in events)


def test_an_answer_that_tokens_did_not_last_for_is_the_sdks_own_error(client: OpenAI):
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(response_format=City, **{**CHAT, "max_tokens": 3})


async def test_async_chat_helpers_equal_the_sync_ones(client: OpenAI, async_client: AsyncOpenAI):
    whole = client.chat.completions.parse(response_format=City, **CHAT).choices[0].message.parsed
    assert isinstance(whole, City)
    parsed = await async_client.chat.completions.parse(response_format=City, **CHAT)
    assert parsed.choices[0].message.parsed == whole
    async with async_client.chat.completions.stream(response_format=City, **CHAT) as stream:
        kinds = in_order([event.type async for event in stream if event.type != "chunk"])
        final = await stream.get_final_completion()
    assert kinds == ["content.delta", "content.done"]
    assert final.choices[0].message.parsed == whole


async def test_async_response_helpers_equal_the_sync_ones(client: OpenAI, async_client: AsyncOpenAI):
    whole = client.responses.parse(text_format=City, **RESPONSE).output_parsed
    assert isinstance(whole, City)
    assert (await async_client.responses.parse(text_format=City, **RESPONSE)).output_parsed == whole
    async with async_client.responses.stream(text_format=City, **RESPONSE) as stream:
        kinds = in_order([event.type async for event in stream])
        final = await stream.get_final_response()
    assert final.output_parsed == whole
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


async def test_async_response_events_of_a_call_carry_its_arguments(async_client: AsyncOpenAI):
    tool = openai.pydantic_function_tool(City)["function"]
    offered: Any = {"tools": [{"type": "function", **tool}], "tool_choice": "required", "parallel_tool_calls": False}
    async with async_client.responses.stream(**offered, **RESPONSE) as stream:
        events = [event async for event in stream]
        (call,) = (await stream.get_final_response()).output
    told = [event for event in events if event.type == "response.function_call_arguments.delta"]
    (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert "".join(event.delta for event in told) == told[-1].snapshot == done.arguments
    assert call.type == "function_call"
    assert City.model_validate_json(call.arguments)
