"""Structured output over HTTP with the OpenAI SDK and langchain-openai, on a real model."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, Literal

import openai
import pytest
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

from tests.gateway.live import Live

MESSAGES: Any = [{"role": "user", "content": "Name a city and say how many people live there."}]
GREEDY: Any = {"temperature": 0, "max_tokens": 120}


class City(BaseModel):
    name: str = Field(max_length=30)
    continent: Literal["Africa", "America", "Asia", "Europe", "Oceania"]
    population: int = Field(ge=0, le=100_000_000)


@pytest.fixture
def client(native_live: Live):
    with OpenAI(base_url=f"{native_live.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        yield client


def test_parse_gives_the_pydantic_model(client: OpenAI):
    answer = client.chat.completions.parse(model="smollm2", messages=MESSAGES, response_format=City, **GREEDY)
    (choice,) = answer.choices
    assert isinstance(choice.message.parsed, City)
    assert choice.finish_reason == "stop"


def test_a_streamed_answer_is_the_whole_one(client: OpenAI):
    whole = client.chat.completions.parse(model="smollm2", messages=MESSAGES, response_format=City, **GREEDY)
    with client.chat.completions.stream(model="smollm2", messages=MESSAGES, response_format=City, **GREEDY) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].message.parsed == whole.choices[0].message.parsed


def test_json_mode_gives_an_object_unless_it_runs_out_of_tokens(client: OpenAI):
    answer = client.chat.completions.create(
        model="smollm2", messages=MESSAGES, response_format={"type": "json_object"}, n=3, **{**GREEDY, "temperature": 1}
    )
    for choice in answer.choices:
        assert (choice.message.content or "").startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content or ""), dict)


@pytest.mark.parametrize(
    ("extra", "pattern"),
    [
        ({"structured_outputs": {"choice": ["Paris", "Rome"]}}, "Paris|Rome"),
        ({"structured_outputs": {"regex": r"\d{3}-[A-Z]{2}"}}, r"\d{3}-[A-Z]{2}"),
        ({"structured_outputs": {"grammar": 'root ::= ("go" | "stop") mark\nmark ::= "!" | "?"'}}, r"(go|stop)[!?]"),
        ({"structured_outputs": {"json": {"type": "integer", "minimum": 5, "maximum": 9}}}, "[5-9]"),
        ({"guided_choice": ["left", "right"]}, "left|right"),
    ],
    ids=["choice", "regex", "grammar", "json", "guided_choice"],
)
def test_other_forms_hold_in_chat_and_in_completions(client: OpenAI, extra: dict[str, Any], pattern: str):
    for seed in range(3):
        sampled: Any = {"temperature": 1.2, "seed": seed, "max_tokens": 60, "extra_body": extra}
        chat = client.chat.completions.create(model="smollm2", messages=MESSAGES, logprobs=True, **sampled)
        plain = client.completions.create(model="smollm2", prompt="Say it:", **sampled)
        for text in (chat.choices[0].message.content, plain.choices[0].text):
            assert re.fullmatch(pattern, text or ""), text
        assert chat.choices[0].logprobs is not None
        told = chat.choices[0].logprobs.content or []
        assert "".join(token.token for token in told) == chat.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"not": {}}}}},
            "response_format.json_schema.schema",
            '"not"',
        ),
        ({"extra_body": {"structured_outputs": {"regex": "(a"}}}, "structured_outputs.regex", "unclosed"),
        ({"extra_body": {"structured_outputs": {"grammar": "?"}}}, "structured_outputs.grammar", "neither"),
        ({"extra_body": {"guided_json": {"type": "x"}}}, "guided_json", "x"),
    ],
    ids=["schema", "regex", "grammar", "guided_json"],
)
def test_a_form_that_cannot_be_honoured_is_a_400_that_names_it(
    client: OpenAI, fields: dict[str, Any], param: str, message: str, stream: bool
):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="smollm2", messages=MESSAGES, stream=stream, **fields)
    assert refused.value.param == param
    assert message in str(refused.value)


@pytest.mark.parametrize("first", ["", "8"], ids=["at once", "after a token"])
def test_a_character_that_the_model_has_no_tokens_for_is_a_400_that_names_the_form(client: OpenAI, first: str):
    extra = {"structured_outputs": {"regex": f"{first}\U00043316"}}  # SmolLM2's vocabulary lacks the byte f1
    with pytest.raises(openai.BadRequestError, match="no token of this model's") as refused:
        client.chat.completions.create(model="smollm2", messages=MESSAGES, extra_body=extra)
    assert refused.value.param == "structured_outputs.regex"


def test_a_stop_string_cuts_a_form(client: OpenAI):
    answer = client.chat.completions.create(
        model="smollm2",
        messages=MESSAGES,
        stop=["7"],
        extra_body={"structured_outputs": {"regex": "[a-c]{4}7[a-c]{4}"}},
    )
    assert re.fullmatch("[a-c]{4}", answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"


async def test_free_and_bound_requests_at_once_all_get_what_they_asked(native_live: Live):
    async with AsyncOpenAI(base_url=f"{native_live.url}/v1", api_key="none", max_retries=0, timeout=300) as client:

        async def ask(number: int) -> None:
            extra: Any = {} if number % 2 else {"structured_outputs": {"regex": f"{number}[xyz]{{3}}"}}
            answer = await client.chat.completions.create(
                model="smollm2", messages=MESSAGES, temperature=1, max_tokens=12, extra_body=extra
            )
            text = answer.choices[0].message.content or ""
            assert bool(re.fullmatch(f"{number}[xyz]{{3}}", text)) == (number % 2 == 0)

        await asyncio.gather(*(ask(number) for number in range(12)))


def test_langchain_structured_output(native_live: Live):
    settings: dict[str, Any] = {"base_url": f"{native_live.url}/v1", "api_key": "none", "max_retries": 0}
    chat = ChatOpenAI(model="smollm2", temperature=0, max_tokens=120, **settings)
    assert isinstance(chat.with_structured_output(City, method="json_schema").invoke("Describe a city."), City)
