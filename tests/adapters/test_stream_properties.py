"""Whatever an engine says, in whatever pieces: a stream says the same as the whole answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.adapter import Exchange
from engines.api import Done, Finish, GenerationEvent, PromptDetails, Started, TextDelta, Usage
from tests.adapters import sdk
from tests.adapters.driving import answer, chat, complete, logprob, stream

texts = st.text(st.characters(codec="utf-8"), max_size=6)


@st.composite
def generations(draw: st.DrawFn) -> tuple[int, list[GenerationEvent]]:
    """Some choices' pieces in any interleaving, held-back ones among them, each with a token id and a logprob."""
    n = draw(st.integers(1, 3))
    order = draw(st.permutations([choice for choice in range(n) for _ in range(draw(st.integers(1, 4)))]))
    left = [order.count(choice) for choice in range(n)]
    events: list[GenerationEvent] = [
        Started(prompt_tokens=1, prompt=PromptDetails(text="p", token_ids=(9,), logprobs=(None,)))
    ]
    for token_id, choice in enumerate(order):
        left[choice] -= 1
        finish = Finish("stop") if left[choice] == 0 else None
        token = logprob(token_id, "t", -float(token_id))
        events.append(TextDelta(choice, draw(texts), 1, (token_id,), (token,), finish))
    events.append(Done(Usage(prompt_tokens=1, completion_tokens=len(order))))
    return n, events


def chat_text(choice: dict[str, Any]) -> str:
    return choice["message"]["content"] if "message" in choice else choice["delta"].get("content", "")


def completion_text(choice: dict[str, Any]) -> str:
    return choice["text"]


def chat_tokens(choice: dict[str, Any]) -> list[Any]:
    return (choice["logprobs"] or {"content": []})["content"]


def completion_tokens(choice: dict[str, Any]) -> list[Any]:
    logprobs = choice["logprobs"] or {}
    columns = [logprobs.get(name, []) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")]
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize(
    ("make", "asks_logprobs", "text", "tokens", "read"),
    [
        pytest.param(chat, True, chat_text, chat_tokens, sdk.chat_chunk, id="chat"),
        pytest.param(complete, 0, completion_text, completion_tokens, sdk.completion, id="completions"),
    ],
)
@given(generation=generations(), with_logprobs=st.booleans(), with_token_ids=st.booleans(), with_usage=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_stream_says_what_the_whole_answer_says(
    make: Callable[..., Exchange],
    asks_logprobs: bool | int,
    text: Callable[[dict[str, Any]], str],
    tokens: Callable[[dict[str, Any]], list[Any]],
    read: Callable[[dict[str, Any]], object],
    generation: tuple[int, list[GenerationEvent]],
    with_logprobs: bool,
    with_token_ids: bool,
    with_usage: bool,
) -> None:
    n, events = generation
    fields: dict[str, Any] = {"n": n, "return_token_ids": with_token_ids}
    if with_logprobs:
        fields["logprobs"] = asks_logprobs
    usage_fields = {"stream_options": {"include_usage": True}} if with_usage else {}
    *chunks, done = stream(make(**fields, **usage_fields, stream=True), events)
    whole = answer(make(**fields), events)

    assert done == "[DONE]"
    if with_usage:
        assert chunks.pop()["usage"] == whole["usage"]
    for chunk in chunks:
        read(chunk)
    for choice in whole["choices"]:
        its_chunks = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        assert "".join(map(text, its_chunks)) == text(choice)
        assert [entry for part in its_chunks for entry in tokens(part)] == tokens(choice)
        assert [part["finish_reason"] for part in its_chunks] == [None] * (len(its_chunks) - 1) + ["stop"]
        told_ids = [token_id for part in its_chunks for token_id in part.get("token_ids", ())]
        assert told_ids == choice.get("token_ids", [])
