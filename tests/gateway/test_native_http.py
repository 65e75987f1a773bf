"""A real model asked by the OpenAI SDK: what one answer says, every other way of asking says too."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.gateway.live import Live

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPTS = [
    "List three facts about the Moon.",
    "Write a haiku about rivers.",
    "Translate 'good morning' to French, German and Spanish.",
    "Count from one to ten in words, separated by commas.",
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(native_live: Live):
    async with openai.AsyncOpenAI(
        base_url=f"{native_live.url}/v1", api_key="none", max_retries=0, timeout=300
    ) as client:
        yield client


async def ask(client: openai.AsyncOpenAI, prompt: str, **fields: Any):
    asked = {"max_tokens": 32, "temperature": 0, **fields}
    return await client.chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": prompt}], **asked
    )


async def streamed(client: openai.AsyncOpenAI, prompt: str, **fields: Any):
    """(text, finish reasons, usage) of a streamed answer."""
    text, finishes, usage = "", [], None
    async for chunk in await ask(client, prompt, stream=True, stream_options={"include_usage": True}, **fields):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            if choice.finish_reason:
                finishes.append(choice.finish_reason)
    return text, finishes, usage


@pytest.mark.parametrize("prompt", PROMPTS)
async def test_a_streamed_answer_says_what_the_whole_one_says(client, prompt):
    whole = await ask(client, prompt)
    text, finishes, usage = await streamed(client, prompt)
    assert text == whole.choices[0].message.content
    assert finishes == [whole.choices[0].finish_reason]
    assert (usage.prompt_tokens, usage.completion_tokens) == (
        whole.usage.prompt_tokens,
        whole.usage.completion_tokens,
    )


@pytest.mark.parametrize("prompt", PROMPTS[:2])
async def test_a_stop_string_anywhere_is_cut_exactly_in_both_ways_of_asking(client, prompt):
    text = (await ask(client, prompt)).choices[0].message.content
    rng = random.Random(prompt)
    for _ in range(5):
        start = rng.randrange(len(text) - 2)
        stop = text[start : start + rng.randint(1, 12)]
        expected = text[: text.index(stop)]
        whole, (shown, finishes, _) = await asyncio.gather(
            ask(client, prompt, stop=[stop]), streamed(client, prompt, stop=[stop])
        )
        assert whole.choices[0].message.content == expected == shown
        assert [whole.choices[0].finish_reason] == finishes == ["stop"]
        kept = await ask(client, prompt, stop=[stop], extra_body={"include_stop_str_in_output": True})
        assert kept.choices[0].message.content == expected + stop


async def test_answers_in_a_crowd_are_the_answers_alone(client):
    alone = [(await ask(client, prompt)).choices[0].message.content for prompt in PROMPTS]
    crowd = await asyncio.gather(*(ask(client, PROMPTS[i % len(PROMPTS)]) for i in range(24)))
    for i, answer in enumerate(crowd):
        assert answer.choices[0].message.content == alone[i % len(PROMPTS)]


async def test_a_seed_repeats_alone_and_in_a_crowd_and_another_seed_does_not(client):
    fields = {"temperature": 1.0, "top_p": 0.9, "seed": 42}
    first = (await ask(client, PROMPTS[0], **fields)).choices[0].message.content
    crowd = await asyncio.gather(
        ask(client, PROMPTS[0], **fields), *(ask(client, prompt, temperature=1.0) for prompt in PROMPTS)
    )
    assert crowd[0].choices[0].message.content == first
    other = await ask(client, PROMPTS[0], **{**fields, "seed": 43})
    assert other.choices[0].message.content != first


async def test_choices_of_one_request_differ_and_share_their_prompt(client):
    answer = await ask(client, PROMPTS[0], n=3, temperature=1.0, seed=1)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert answer.usage.completion_tokens <= 3 * 32


async def test_logprobs_belong_to_the_text_and_name_the_greedy_choice_first(client):
    answer = await ask(client, PROMPTS[1], logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == answer.choices[0].message.content
    assert all(entry.top_logprobs[0].token == entry.token for entry in content)
    assert all(entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob for entry in content)


async def test_logprobs_end_where_a_stop_string_cuts_the_text(client):
    text = (await ask(client, PROMPTS[1])).choices[0].message.content
    stop = text[len(text) // 2 : len(text) // 2 + 6]
    answer = await ask(client, PROMPTS[1], stop=[stop], logprobs=True)
    kept = "".join(entry.token for entry in answer.choices[0].logprobs.content)
    shown = answer.choices[0].message.content
    assert kept.startswith(shown)
    assert len(kept) - len(shown) < len(answer.choices[0].logprobs.content[-1].token)


async def test_echo_scores_a_prompt_without_generating(client):
    answer = await client.completions.create(
        model="smollm2", prompt="The capital of France is Paris.", echo=True, logprobs=1, max_tokens=0
    )
    choice = answer.choices[0]
    assert choice.text == "The capital of France is Paris."
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in choice.logprobs.token_logprobs[1:])
    assert answer.usage.completion_tokens == 0


async def test_a_repeated_prompt_reports_its_cached_tokens(client):
    prompt = "Repeat after me: " + "the quick brown fox jumps over the lazy dog. " * 6
    first = await ask(client, prompt, max_tokens=1)
    second = await ask(client, prompt, max_tokens=1)
    assert second.usage.prompt_tokens_details.cached_tokens > first.usage.prompt_tokens_details.cached_tokens
    assert second.usage.prompt_tokens_details.cached_tokens % 16 == 0


async def test_mixed_requests_at_once_get_exactly_the_tokens_they_asked_for(client):
    rng = random.Random(0)
    limits = [rng.randint(1, 24) for _ in range(64)]
    answers = await asyncio.gather(
        *(ask(client, rng.choice(PROMPTS), max_tokens=limit, extra_body={"ignore_eos": True}) for limit in limits)
    )
    assert [answer.usage.completion_tokens for answer in answers] == limits


async def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(client):
    with pytest.raises(openai.BadRequestError, match=r"9\d\d\d.*8192") as refused:
        await ask(client, "word " * 9000)
    assert refused.value.body["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("field", "value", "setting"),
    [("priority", 1, "--scheduling-policy priority"), ("chat_template", "x", "--trust-request-chat-template")],
)
async def test_what_a_setting_would_allow_is_refused_and_the_setting_named(client, field, value, setting):
    with pytest.raises(openai.BadRequestError, match=setting) as caught:
        await ask(client, PROMPTS[0], extra_body={field: value})
    assert caught.value.param == field
    assert (await ask(client, PROMPTS[0], max_tokens=1, extra_body={"priority": 0})).choices
