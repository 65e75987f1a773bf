from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.engines import EchoSettings
from engines.api import (
    ChatPrompt,
    Done,
    Finish,
    GenerationRequest,
    PromptDetails,
    SamplingParams,
    Started,
    TextDelta,
    TextPrompt,
    TokensPrompt,
)
from engines.echo import EchoEngine
from engines.echo.tokens import split_tokens, token_id, token_text
from engines.errors import InvalidRequest, PromptTooLong, UnsupportedByEngine

WORDS = "Hello, brave new world"  # Hell|o,| bra|ve| new| wor|ld


def chat(*contents: Any, role: str = "user") -> ChatPrompt:
    return ChatPrompt(messages=tuple({"role": role, "content": content} for content in contents))


async def pieces(
    prompt: Any, *, n: int = 1, stream: bool = True, settings: Any = None, **sampling: Any
) -> list[TextDelta]:
    engine = EchoEngine(EchoSettings(**(settings or {})))
    await engine.start()
    request = GenerationRequest(
        request_id="r", model="echo", prompt=prompt, n=n, stream=stream, sampling=SamplingParams(**sampling)
    )
    events = [event async for event in engine.generate(request)]
    deltas = [event for event in events if isinstance(event, TextDelta)]
    assert isinstance(events[-1], Done)
    assert events[-1].usage.completion_tokens == sum(delta.num_tokens for delta in deltas)
    assert engine.stats().running == 0
    return deltas


async def said(prompt: Any, **options: Any) -> tuple[str, int, Finish | None]:
    deltas = await pieces(prompt, **options)
    return "".join(delta.text for delta in deltas), sum(delta.num_tokens for delta in deltas), deltas[-1].finish


# --- tokens -----------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_tokens_are_short_and_their_ids_give_the_text_back(text: str):
    tokens = split_tokens(text)
    ids = [token_id(token) for token in tokens]
    assert "".join(tokens) == text
    assert all(1 <= len(token) <= 4 for token in tokens)
    assert all(0 <= number < 2**27 for number in ids)
    assert [token_text(number) for number in ids] == tokens


@given(st.integers(-10, 2**31))
def test_id_is_a_token_or_refused(number: int):
    try:
        text = token_text(number)
    except InvalidRequest:
        return
    assert token_id(text) == number


def test_ids_are_the_same_in_every_process():
    assert [token_id(token) for token in ("a", "世", "Hell", " wor")] == [97, 0x4E16, 38040877, 2817619]


# --- what it answers --------------------------------------------------------------------------------------------------


async def test_chat_is_answered_with_the_last_user_message():
    prompt = ChatPrompt(
        messages=(
            {"role": "user", "content": "first"},
            {"role": "user", "content": [{"type": "text", "text": "sec"}, {"type": "text", "text": "ond"}]},
            {"role": "assistant", "content": "third"},
        )
    )
    assert (await said(prompt))[0] == "second"


async def test_chat_without_user_is_answered_with_its_last_message():
    assert (await said(chat("one", "two", role="system")))[0] == "two"


async def test_prompt_is_said_once_and_stops():
    assert await said(TextPrompt(WORDS)) == (WORDS, 7, Finish("stop"))
    assert await said(TokensPrompt((72, 105))) == ("Hi", 1, Finish("stop"))


async def test_token_ids_are_counted_as_they_are():
    engine = EchoEngine(EchoSettings())
    await engine.start()
    request = GenerationRequest(request_id="r", model="echo", prompt=TokensPrompt((72, 105)), echo=True)
    first, *_, last = [event async for event in engine.generate(request)]
    assert isinstance(first, Started)
    assert isinstance(last, Done)
    assert (first.prompt_tokens, last.usage.prompt_tokens) == (2, 2)
    assert first.prompt == PromptDetails(text="Hi", token_ids=(72, 105))


async def test_prompt_is_repeated_to_the_number_of_tokens_that_were_asked_for():
    assert await said(TextPrompt("Hi"), max_tokens=4) == ("Hi Hi Hi Hi", 4, Finish("length"))
    assert await said(TextPrompt(WORDS), max_tokens=2) == ("Hello,", 2, Finish("length"))
    assert await said(TextPrompt(WORDS), min_tokens=9) == (f"{WORDS} Hello,", 9, Finish("stop"))


async def test_ignore_eos_fills_the_context():
    text, num_tokens, finish = await said(TextPrompt("Hi"), ignore_eos=True, settings={"max_model_len": 10})
    assert (text, num_tokens, finish) == (" ".join(["Hi"] * 9), 9, Finish("length"))


@pytest.mark.parametrize("stream", [True, False])
async def test_nothing_to_say_is_one_empty_piece(stream: bool):
    assert await pieces(TextPrompt(""), stream=stream) == [TextDelta(0, "", 0, finish=Finish("stop"))]
    assert await pieces(TextPrompt("Hi"), stream=stream, max_tokens=0) == [TextDelta(0, "", 0, finish=Finish("length"))]


async def test_stream_has_a_piece_for_each_token_and_choice():
    deltas = await pieces(TextPrompt("Hi"), n=2, max_tokens=2)
    assert [(delta.index, delta.text, delta.token_ids, delta.finish) for delta in deltas] == [
        (0, "Hi", (token_id("Hi"),), None),
        (1, "Hi", (token_id("Hi"),), None),
        (0, " Hi", (token_id(" Hi"),), Finish("length")),
        (1, " Hi", (token_id(" Hi"),), Finish("length")),
    ]


async def test_whole_answer_is_one_piece_for_each_choice():
    deltas = await pieces(TextPrompt(WORDS), n=2, stream=False)
    assert [(delta.index, delta.text, delta.num_tokens) for delta in deltas] == [(0, WORDS, 7), (1, WORDS, 7)]


# --- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stop", "text", "num_tokens", "matched"),
    [
        pytest.param(("o, b",), "Hell", 3, "o, b", id="over-tokens"),
        pytest.param(("ra",), "Hello, b", 3, "ra", id="inside-a-token"),
        pytest.param(("Hell",), "", 1, "Hell", id="at-the-start"),
        pytest.param(("world",), "Hello, brave new ", 7, "world", id="at-the-end"),
        pytest.param(("never",), WORDS, 7, None, id="absent"),
        pytest.param(("new", "brave"), "Hello, ", 4, "brave", id="earliest"),
        pytest.param(("o, b", "b"), "Hell", 3, "o, b", id="longest-of-one-end"),
        pytest.param(("lo, brave", "o"), "Hell", 2, "o", id="ends-first"),
        pytest.param((".*",), WORDS, 7, None, id="no-regex"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_stop_string_is_cut_exactly(stop: Any, text: str, num_tokens: int, matched: str | None, stream: bool):
    assert await said(TextPrompt(WORDS), stop=stop, stream=stream) == (text, num_tokens, Finish("stop", matched))


@given(st.text("ab ", min_size=1, max_size=30), st.lists(st.text("ab ", min_size=1, max_size=4), max_size=3))
def test_stop_strings_leave_what_a_search_leaves(text: str, stops: list[str]):
    got, _, finish = asyncio.run(said(TextPrompt(text), stop=tuple(stops)))
    ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    assert got == text[: min(ends)[1]] if ends else text
    assert not any(stop in got for stop in stops)
    assert finish is not None
    assert (finish.matched is not None) == bool(ends)


async def test_stop_string_may_stay_in_the_answer():
    assert (await said(TextPrompt(WORDS), stop=("ra",), include_stop_str_in_output=True))[0] == "Hello, bra"


async def test_stop_token_ends_the_answer():
    stop = token_id(" bra")
    assert await said(TextPrompt(WORDS), stop_token_ids=(stop,)) == ("Hello,", 3, Finish("stop", stop))
    assert await said(TextPrompt(WORDS), stop_token_ids=(stop,), stop=("ra",)) == ("Hello,", 3, Finish("stop", stop))
    assert (await said(TextPrompt(WORDS), stop_token_ids=(stop,), include_stop_str_in_output=True))[0] == "Hello, bra"


async def test_stop_conditions_wait_for_the_least_number_of_tokens():
    text, num_tokens, _ = await said(TextPrompt("Hi"), max_tokens=9, min_tokens=3, stop=("Hi",))
    assert (text, num_tokens) == ("Hi Hi Hi ", 4)
    stop = token_id(" Hi")
    assert (await said(TextPrompt("Hi"), max_tokens=9, min_tokens=3, stop_token_ids=(stop,)))[1] == 4


# --- refusing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
async def test_logprobs_are_refused(field: str):
    with pytest.raises(UnsupportedByEngine) as refused:
        await said(TextPrompt("Hi"), **{field: 1})
    assert refused.value.field == field


async def test_what_it_cannot_read_is_refused():
    with pytest.raises(UnsupportedByEngine, match="image_url"):
        await pieces(chat([{"type": "image_url", "image_url": {"url": "x"}}]))
    with pytest.raises(UnsupportedByEngine, match="tools"):
        await pieces(ChatPrompt(messages=({"role": "user", "content": "Hi"},), tools=({"type": "function"},)))
    with pytest.raises(InvalidRequest, match="Token id"):
        await pieces(TokensPrompt((0xD800,)))


@pytest.mark.parametrize(
    ("prompt", "sampling", "numbers", "field"),
    [
        pytest.param(TextPrompt("a b c d e"), {}, ("4", "5"), "prompt", id="prompt"),
        pytest.param(TextPrompt("a b"), {"max_tokens": 3}, ("4", "2", "3"), "prompt", id="prompt-and-answer"),
        pytest.param(chat("a b c d e"), {}, ("4",), "messages", id="chat"),
        pytest.param(TextPrompt("abcd" * 500_000), {}, ("4", "500000"), "prompt", id="far-too-long"),
    ],
)
async def test_prompt_too_long_names_both_numbers(prompt: Any, sampling: Any, numbers: tuple[str, ...], field: str):
    with pytest.raises(PromptTooLong) as refused:
        await pieces(prompt, settings={"max_model_len": 4}, **sampling)
    assert refused.value.field == field
    assert all(number in refused.value.message for number in numbers)


# --- time -------------------------------------------------------------------------------------------------------------


async def test_tokens_leave_the_event_loop_to_others():
    engine = EchoEngine(EchoSettings())
    await engine.start()
    order: list[str] = []

    async def listen(name: str) -> None:
        request = GenerationRequest(request_id=name, model="echo", prompt=TextPrompt(WORDS))
        async for event in engine.generate(request):
            if isinstance(event, TextDelta):
                order.append(name)  # noqa: PERF401 - two listeners take turns on one list

    await asyncio.gather(listen("a"), listen("b"))
    assert order == ["a", "b"] * 7


async def test_delay_is_waited_for_before_each_token(monkeypatch: pytest.MonkeyPatch):
    waited: list[float] = []

    async def sleep(delay_s: float) -> None:
        waited.append(delay_s)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    await pieces(TextPrompt(WORDS), settings={"token_delay_s": 0.5})
    await pieces(TextPrompt(WORDS), settings={"token_delay_s": 0.5}, stream=False)
    assert waited == [0.5] * 7 + [3.5]
