from __future__ import annotations

import json
from typing import Any

import pytest

from adapters.tokenize import detokenize_body, parse_detokenize, parse_tokenize, tokenize_body
from engines.api import ChatPrompt, TextPrompt, Tokenized
from engines.errors import InvalidRequest

USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "f"}}


def tokenize(**body: Any) -> Any:
    return parse_tokenize(json.dumps(body).encode())


def test_a_prompt_is_tokenized_with_special_tokens_unless_told_otherwise() -> None:
    assert tokenize(prompt="a").prompt == TextPrompt("a", add_special_tokens=True)
    assert tokenize(prompt="a", add_special_tokens=False).prompt == TextPrompt("a", add_special_tokens=False)


def test_a_conversation_is_tokenized_through_the_template() -> None:
    call = tokenize(model="m", messages=[USER], chat_template_kwargs={"x": 1}, add_generation_prompt=False)
    assert call.model == "m"
    assert call.prompt == ChatPrompt(messages=(USER,), add_generation_prompt=False, template_kwargs={"x": 1})


def test_a_conversations_tools_are_part_of_it() -> None:
    assert tokenize(messages=[USER], tools=[TOOL]).prompt == ChatPrompt(messages=(USER,), tools=(TOOL,))


def test_texts_are_told_only_when_asked_for() -> None:
    assert not tokenize(prompt="a").with_texts
    assert tokenize(prompt="a", return_token_strs=True).with_texts
    tokenized = Tokenized((1, 2), 64, ("a", "b"))
    plain = {"count": 2, "max_model_len": 64, "tokens": [1, 2], "token_strs": None}
    assert json.loads(tokenize_body(tokenized, with_texts=False)) == plain
    assert json.loads(tokenize_body(tokenized, with_texts=True)) == plain | {"token_strs": ["a", "b"]}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "a", "messages": [USER]}, "messages"),
        ({"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ({"prompt": "a", "chat_template_kwargs": {"x": 1}}, "chat_template_kwargs"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
        ({"prompt": ["a"]}, "prompt"),
        ({"messages": [USER], "tools": [{"type": "function"}]}, "tools[0].function"),
        ({"prompt": "a", "tools": [TOOL]}, "tools"),
        ({"prompt": "a", "odd": 1}, "odd"),
    ],
)
def test_what_cannot_be_tokenized_is_refused_by_name(body: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tokenize(**body)
    assert caught.value.field == named


def test_token_ids_become_text() -> None:
    call = parse_detokenize(b'{"model": "m", "tokens": [1, 2]}')
    assert (call.model, call.token_ids) == ("m", (1, 2))
    assert parse_detokenize(b'{"tokens": []}').token_ids == ()
    assert json.loads(detokenize_body("a\n")) == {"prompt": "a\n"}


@pytest.mark.parametrize("tokens", [None, "a", [-1], [1.5], ["a"], [2**31], [True]])
def test_other_tokens_are_refused(tokens: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_detokenize(json.dumps({"tokens": tokens}).encode())
    assert (caught.value.field or "").startswith("tokens")
