"""What every engine kind promises the gateway. The kinds are listed in `contract.py`."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
import pytest_asyncio

from engines.api import ChatPrompt, EmbeddingRequest, Started, TextDelta, TextPrompt, TokensPrompt
from engines.errors import EngineUnavailable, HeadraceError, UnsupportedByEngine
from gateway.errors import status_of
from tests.engines.contract import KINDS, PROMPT, Opener, Subject, answer, asked, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = ChatPrompt(messages=({"role": "user", "content": "Name three colours, please."},))
STREAMED = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


@pytest.fixture(scope="module", params=KINDS)
def opener(request: pytest.FixtureRequest) -> Opener:
    return request.param


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def subject(opener: Opener) -> AsyncGenerator[Subject, None]:
    """One engine for all tests of a kind, as in life: what a test leaves behind harms the next."""
    async with opener() as opened:
        await opened.engine.start()
        try:
            yield opened
        finally:
            await opened.engine.aclose()


# --- what it says of itself -------------------------------------------------------------------------------------------


async def test_started_engine_is_healthy_and_names_its_models(subject: Subject):
    assert (await subject.engine.health()).ok
    names = [name for card in subject.engine.models for name in (card.name, *card.aliases)]
    assert subject.model in names
    assert len(names) == len(set(names))


async def test_engine_outside_start_and_close_refuses_and_is_not_healthy(opener: Opener):
    async def check(opened: Subject) -> None:
        assert not (await opened.engine.health()).ok
        with pytest.raises(EngineUnavailable):
            await answer(opened, asked(opened))

    async with opener() as opened:
        await check(opened)
        await opened.engine.start()
        await opened.engine.aclose()
        await check(opened)


# --- answers ----------------------------------------------------------------------------------------------------------


@STREAMED
@pytest.mark.parametrize("prompt", [PROMPT, CHAT], ids=["text", "chat"])
async def test_answer_has_the_tokens_that_were_asked_for(
    subject: Subject, prompt: TextPrompt | ChatPrompt, stream: bool
):
    got = await answer(subject, asked(subject, prompt, stream=stream))
    (choice,) = got.choices
    assert choice.text
    assert choice.finish is not None
    assert (choice.finish.reason, choice.finish.matched) == ("length", None)
    assert got.usage.completion_tokens == 16
    assert got.usage.prompt_tokens > 0
    assert 0 <= got.usage.cached_tokens <= got.usage.prompt_tokens
    if subject.counts_pieces:
        assert choice.num_tokens == 16
        assert got.started.prompt_tokens in (0, got.usage.prompt_tokens)  # 0: an upstream tells it at the end


@pytest.mark.parametrize("prompt", [PROMPT, CHAT], ids=["text", "chat"])
async def test_whole_answer_equals_the_streamed_one(subject: Subject, prompt: TextPrompt | ChatPrompt):
    streamed = await answer(subject, asked(subject, prompt, stream=True))
    whole = await answer(subject, asked(subject, prompt, stream=False))
    assert (whole.texts, whole.usage.completion_tokens) == (streamed.texts, streamed.usage.completion_tokens)
    assert [choice.finish for choice in whole.choices] == [choice.finish for choice in streamed.choices]


@STREAMED
async def test_every_choice_is_told_and_counted(subject: Subject, stream: bool):
    one = await answer(subject, asked(subject, stream=stream))
    three = await answer(subject, asked(subject, n=3, stream=stream))
    assert three.texts == one.texts * 3
    assert three.usage.completion_tokens == 48
    assert three.usage.prompt_tokens == one.usage.prompt_tokens


async def test_token_ids_are_as_good_as_their_text(subject: Subject):
    if not subject.tokenizes:
        pytest.skip("the engine has no tokenizer")
    token_ids = (await subject.engine.tokenize(subject.model, PROMPT)).token_ids
    from_text, from_ids = [
        await answer(subject, asked(subject, prompt)) for prompt in (PROMPT, TokensPrompt(token_ids))
    ]
    assert from_ids.texts == from_text.texts
    assert from_ids.usage.prompt_tokens == len(token_ids)


async def test_requests_at_once_are_answered_as_alone(subject: Subject):
    prompts = [TextPrompt(f"Item {number} of the list is") for number in range(16)]
    alone = [(await answer(subject, asked(subject, prompt))).texts for prompt in prompts]
    together = await asyncio.gather(*(answer(subject, asked(subject, prompt)) for prompt in prompts))
    assert [got.texts for got in together] == alone


async def test_same_seed_gives_the_same_answer(subject: Subject):
    first, second = [await answer(subject, asked(subject, temperature=1.0, seed=7)) for _ in range(2)]
    assert first.texts == second.texts


async def test_echo_tells_the_prompt(subject: Subject):
    got = await answer(subject, asked(subject, echo=True))
    assert got.started.prompt is not None
    assert PROMPT.text in got.started.prompt.text  # a tokenizer may add special tokens around it


async def test_only_the_last_prompt_tokens_are_kept_when_told_so(subject: Subject):
    got = await answer(subject, asked(subject, truncate_prompt_tokens=3))
    assert got.usage.prompt_tokens == 3


# --- stopping ---------------------------------------------------------------------------------------------------------


@STREAMED
@pytest.mark.parametrize("included", [False, True], ids=["cut", "included"])
async def test_stop_string_ends_the_answer_exactly(subject: Subject, included: bool, stream: bool):
    (text,) = (await answer(subject, asked(subject))).texts
    for start, end in ((1, 2), (3, 9), (6, len(text) - 2)):
        stop = text[start:end]
        first = text.index(stop)
        request = asked(subject, stop=("never said", stop), include_stop_str_in_output=included, stream=stream)
        (choice,) = (await answer(subject, request)).choices
        assert choice.text == text[: first + len(stop) if included else first]
        assert choice.finish is not None
        assert (choice.finish.reason, choice.finish.matched) == ("stop", stop)


async def test_stop_conditions_wait_for_the_least_number_of_tokens(subject: Subject):
    (text,) = (await answer(subject, asked(subject))).texts
    got = await answer(subject, asked(subject, stop=(text[0],), min_tokens=8))
    assert got.usage.completion_tokens >= 8


async def test_single_token_is_an_answer(subject: Subject):
    got = await answer(subject, asked(subject, max_tokens=1))
    assert got.usage.completion_tokens == 1


# --- refusing ---------------------------------------------------------------------------------------------------------


@STREAMED
async def test_prompt_beyond_the_context_is_refused_as_the_clients_mistake(subject: Subject, stream: bool):
    with pytest.raises(HeadraceError) as raised:
        await answer(subject, asked(subject, TextPrompt("word " * 200_000), stream=stream))
    assert status_of(raised.value) == 400
    assert raised.value.message


async def test_refusal_comes_before_any_event(subject: Subject):
    async with aclosing(subject.engine.generate(asked(subject, TextPrompt("word " * 200_000)))) as events:
        with pytest.raises(HeadraceError):
            await anext(events)


# --- cancelling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_events", [0, 1, 3], ids=["unstarted", "accepted", "in-the-text"])
async def test_closing_the_generator_ends_the_request(subject: Subject, num_events: int):
    events = subject.engine.generate(asked(subject, max_tokens=2000))
    seen = [await anext(events) for _ in range(num_events)]
    await events.aclose()
    assert [type(event) for event in seen] == [Started, TextDelta, TextDelta][:num_events]
    await until(lambda: subject.engine.stats().running == 0)
    with pytest.raises(StopAsyncIteration):
        await anext(events)


@pytest.mark.parametrize("num_turns", [1, 2, 5, 50])
async def test_cancelled_task_ends_its_request(subject: Subject, num_turns: int):
    task = asyncio.create_task(answer(subject, asked(subject, max_tokens=2000, n=2)))
    for _ in range(num_turns):
        await asyncio.sleep(0)
    assert task.cancel(), "the answer was complete before it could be cancelled"
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: subject.engine.stats().running == 0)


async def test_abandoned_requests_leave_nothing_behind(subject: Subject):
    (text,) = (await answer(subject, asked(subject))).texts
    for _ in range(4):
        opened = [subject.engine.generate(asked(subject, max_tokens=2000)) for _ in range(25)]
        await asyncio.gather(*(anext(events) for events in opened))
        await asyncio.gather(*(events.aclose() for events in opened))
    await until(lambda: subject.engine.stats().running == 0)
    assert subject.engine.stats().waiting == 0
    assert (await answer(subject, asked(subject))).texts == [text]


# --- embedding --------------------------------------------------------------------------------------------------------


def embeds(subject: Subject, *inputs: TextPrompt | TokensPrompt, **fields: Any) -> EmbeddingRequest:
    return EmbeddingRequest(request_id="e", model=subject.model, inputs=inputs, **fields)


def numbers(vector: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))


async def test_inputs_embedded_together_have_the_vectors_that_they_have_alone(subject: Subject):
    texts = [TextPrompt(f"Item {number} of the list is" * (1 + number % 3)) for number in range(8)]
    alone = [await subject.engine.embed(embeds(subject, text)) for text in texts]
    together = await subject.engine.embed(embeds(subject, *texts))
    for vector, one in zip(together.vectors, alone, strict=True):
        assert numbers(vector) == pytest.approx(numbers(one.vectors[0]), abs=2e-2)  # bfloat16 weights, other kernels
        assert sum(x * x for x in numbers(vector)) == pytest.approx(1, abs=1e-5)
    assert together.prompt_tokens == sum(one.prompt_tokens for one in alone) > 0


async def test_token_ids_are_embedded_as_their_text(subject: Subject):
    token_ids = (await subject.engine.tokenize(subject.model, PROMPT)).token_ids
    of_text, of_ids = [await subject.engine.embed(embeds(subject, one)) for one in (PROMPT, TokensPrompt(token_ids))]
    assert numbers(of_ids.vectors[0]) == pytest.approx(numbers(of_text.vectors[0]), abs=2e-2)
    assert of_ids.prompt_tokens == len(token_ids)


async def test_vectors_are_cut_when_told_so(subject: Subject):
    got = await subject.engine.embed(embeds(subject, PROMPT, dimensions=8))
    assert len(numbers(got.vectors[0])) == 8
    assert sum(x * x for x in numbers(got.vectors[0])) == pytest.approx(1, abs=1e-5)


async def test_inputs_are_truncated_at_the_side_that_is_told(subject: Subject):
    whole = await subject.engine.embed(embeds(subject, PROMPT))
    start, end = [
        await subject.engine.embed(embeds(subject, PROMPT, truncate_prompt_tokens=3, truncation_side=side))
        for side in ("right", "left")
    ]
    assert start.prompt_tokens == end.prompt_tokens == 3 < whole.prompt_tokens
    assert len({*start.vectors, *end.vectors, *whole.vectors}) == 3


@pytest.mark.parametrize("fields", [{"dimensions": 1_000_000}, {}], ids=["dimensions", "length"])
async def test_embeddings_that_the_model_cannot_make_are_the_clients_mistake(subject: Subject, fields: Any):
    text = PROMPT if fields else TextPrompt("word " * 200_000)
    with pytest.raises(HeadraceError) as raised:
        await subject.engine.embed(embeds(subject, text, **fields))
    assert status_of(raised.value) == 400


@pytest.mark.parametrize("num_turns", [1, 5, 50])
async def test_cancelled_embedding_leaves_nothing_behind(subject: Subject, num_turns: int):
    texts = [TextPrompt(f"Item {number} of the list is" * 30) for number in range(700)]
    task = asyncio.create_task(subject.engine.embed(embeds(subject, *texts)))
    for _ in range(num_turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: subject.engine.stats().running == subject.engine.stats().waiting == 0)


# --- tokenizing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["Hello, brave new world!", "", "tab\tnewline\n\n  spaces", "Grüße, 世界 👩‍👩‍👧"],
    ids=["ascii", "empty", "blank", "utf8"],
)
async def test_detokenized_tokens_are_the_text(subject: Subject, text: str):
    prompt = TextPrompt(text, add_special_tokens=False)
    if not subject.tokenizes:
        with pytest.raises(UnsupportedByEngine):
            await subject.engine.tokenize(subject.model, prompt)
        return
    tokenized = await subject.engine.tokenize(subject.model, prompt, with_texts=True)
    assert await subject.engine.detokenize(subject.model, tokenized.token_ids) == text
    assert len(tokenized.token_texts) == len(tokenized.token_ids)


async def test_tokenized_conversation_is_what_is_billed(subject: Subject):
    if not subject.tokenizes:
        pytest.skip("the engine has no tokenizer")
    tokenized = await subject.engine.tokenize(subject.model, CHAT)
    assert (await answer(subject, asked(subject, CHAT))).usage.prompt_tokens == len(tokenized.token_ids)
