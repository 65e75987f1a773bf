"""The openai SDK, sync and async, against a live server. Holds for every engine kind that `live` serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionChunk

from tests.gateway.live import Live

MESSAGES: Any = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "Count from one to ten in words."},
]
GREEDY: Any = {"temperature": 0, "max_tokens": 24}


@pytest.fixture
def client(live: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


@pytest.fixture
async def async_client(live: Live) -> AsyncGenerator[AsyncOpenAI, None]:
    async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


def texts(chunks: list[ChatCompletionChunk], n: int = 1) -> list[str]:
    pieces = [""] * n
    for chunk in chunks:
        for choice in chunk.choices:
            pieces[choice.index] += choice.delta.content or ""
    return pieces


# --- chat -------------------------------------------------------------------------------------------------------------


def test_chat_answers_with_text_reason_and_usage(client: OpenAI, live: Live):
    answer = client.chat.completions.create(model=live.model, messages=MESSAGES, **GREEDY)
    (choice,) = answer.choices
    assert answer.model == live.model
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 24
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("n", [1, 3])
def test_streamed_chat_equals_the_whole_one(client: OpenAI, live: Live, n: int):
    whole = client.chat.completions.create(model=live.model, messages=MESSAGES, n=n, **GREEDY)
    chunks = list(
        client.chat.completions.create(
            model=live.model, messages=MESSAGES, n=n, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    assert texts(chunks, n) == [choice.message.content for choice in whole.choices]
    reasons = [
        (choice.index, choice.finish_reason) for chunk in chunks for choice in chunk.choices if choice.finish_reason
    ]
    assert sorted(reasons) == [(choice.index, choice.finish_reason) for choice in whole.choices]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_continuous_usage_grows_to_the_final_count(client: OpenAI, live: Live):
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    stream = client.chat.completions.create(
        model=live.model, messages=MESSAGES, stream=True, stream_options=options, **GREEDY
    )
    counts = [chunk.usage.completion_tokens for chunk in stream if chunk.usage is not None]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == counts[-2]


def test_stop_string_is_cut_both_ways(client: OpenAI, live: Live):
    whole = client.chat.completions.create(model=live.model, messages=MESSAGES, **GREEDY).choices[0].message.content
    assert whole is not None
    stop = whole[5:9]
    cut = client.chat.completions.create(model=live.model, messages=MESSAGES, stop=stop, **GREEDY).choices[0]
    stream = client.chat.completions.create(model=live.model, messages=MESSAGES, stop=[stop], stream=True, **GREEDY)
    assert cut.message.content == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"
    assert texts(list(stream)) == [cut.message.content]


def test_sdk_stream_helper_accumulates_the_answer(client: OpenAI, live: Live):
    # Ends at the first space, for the helper takes an answer cut by its length as an error.
    with client.chat.completions.stream(model=live.model, messages=MESSAGES, stop=" ", **GREEDY) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content


def test_stream_left_early_leaves_the_server_well(client: OpenAI, live: Live):
    for _ in range(5):
        with client.chat.completions.create(
            model=live.model, messages=MESSAGES, stream=True, temperature=0, max_tokens=1000
        ) as stream:
            next(iter(stream))
    assert client.chat.completions.create(model=live.model, messages=MESSAGES, **GREEDY).choices


async def test_async_requests_at_once_all_get_their_own_answer(async_client: AsyncOpenAI, live: Live):
    async def ask(number: int) -> tuple[str | None, str]:
        messages: Any = [{"role": "user", "content": f"Repeat the number {number}."}]
        whole = await async_client.chat.completions.create(model=live.model, messages=messages, **GREEDY)
        stream = await async_client.chat.completions.create(model=live.model, messages=messages, stream=True, **GREEDY)
        return whole.choices[0].message.content, texts([chunk async for chunk in stream])[0]

    answers = await asyncio.gather(*(ask(number) for number in range(16)))
    assert all(whole and whole == streamed for whole, streamed in answers)


# --- completions ------------------------------------------------------------------------------------------------------


def test_completions_of_a_list_answer_each_prompt(client: OpenAI, live: Live):
    prompts = ["Once upon a time", "The capital of France is"]
    together = client.completions.create(model=live.model, prompt=prompts, **GREEDY)
    alone = [client.completions.create(model=live.model, prompt=prompt, **GREEDY) for prompt in prompts]
    assert [choice.index for choice in together.choices] == [0, 1]
    assert [choice.text for choice in together.choices] == [answer.choices[0].text for answer in alone]
    assert together.usage is not None
    assert together.usage.prompt_tokens == sum(answer.usage.prompt_tokens for answer in alone if answer.usage)


def test_streamed_completion_with_echo_begins_with_the_prompt(client: OpenAI, live: Live):
    prompt = "Once upon a time"
    whole = client.completions.create(model=live.model, prompt=prompt, echo=True, **GREEDY)
    stream = client.completions.create(model=live.model, prompt=prompt, echo=True, stream=True, **GREEDY)
    text = "".join(chunk.choices[0].text for chunk in stream)
    assert text == whole.choices[0].text
    assert text.startswith(prompt)


async def test_async_completion_streams(async_client: AsyncOpenAI, live: Live):
    stream = await async_client.completions.create(model=live.model, prompt="Once upon", stream=True, **GREEDY)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks)
    assert [chunk.choices[0].finish_reason is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


# --- models and errors ------------------------------------------------------------------------------------------------


def test_models_are_listed_and_retrieved(client: OpenAI, live: Live):
    assert live.model in [model.id for model in client.models.list()]
    assert client.models.retrieve(live.model).id == live.model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no/such-model")


def test_errors_are_the_sdks_own(client: OpenAI, live: Live):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="no-such-model", messages=MESSAGES)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=live.model, messages=MESSAGES, temperature=9, stream=True)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="frobnicate"):
        client.chat.completions.create(model=live.model, messages=MESSAGES, extra_body={"frobnicate": 1})


def test_request_id_reaches_the_sdk(client: OpenAI, live: Live):
    answer = client.chat.completions.create(
        model=live.model, messages=MESSAGES, extra_headers={"X-Request-Id": "mine"}, **GREEDY
    )
    assert answer._request_id == "mine"
    assert "mine" in answer.id
