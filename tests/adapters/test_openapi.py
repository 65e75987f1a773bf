"""The schemas describe what is accepted and what is answered: checked with real bodies."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from adapters.openai_errors import error_body
from adapters.openai_models import model_list_body
from adapters.openapi import openapi_schemas
from adapters.tokenize import detokenize_body, tokenize_body
from engines.api import ModelCard, Tokenized
from engines.errors import HeadraceError
from tests.adapters.driving import USER, answer, chat, complete, story, stream


def validator(name: str) -> Draft202012Validator:
    schemas = openapi_schemas()
    assert name in schemas
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}})


EVERYTHING: dict[str, Any] = {"return_token_ids": True, "prompt_logprobs": 1}
STREAMED: dict[str, Any] = {"return_token_ids": True, "stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("name", "payloads"),
    [
        ("ChatCompletionRequest", [{"model": "m", "messages": USER}, {"model": "m", "messages": USER, "stop": "x"}]),
        ("CompletionRequest", [{"model": "m", "prompt": prompt} for prompt in ("a", ["a"], [1], [[1]])]),
        ("ChatCompletion", [answer(chat(), story()), answer(chat(**EVERYTHING, logprobs=True), story())]),
        ("ChatCompletionChunk", stream(chat(**STREAMED, logprobs=True), story())[:-1]),
        ("Completion", [answer(complete(**EVERYTHING, echo=True, logprobs=1), story())]),
        ("CompletionChunk", stream(complete(**STREAMED, echo=True, logprobs=1), story())[:-1]),
        ("ModelList", [json.loads(model_list_body([ModelCard(name="m")]))]),
        ("TokenizeRequest", [{"prompt": "a"}, {"messages": USER}]),
        ("TokenizeAnswer", [json.loads(tokenize_body(Tokenized((1,), None, ("a",)), with_texts=True))]),
        ("DetokenizeRequest", [{"tokens": [1]}]),
        ("DetokenizeAnswer", [json.loads(detokenize_body("a"))]),
        ("ErrorBody", [json.loads(error_body(HeadraceError("x"), 500))]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_schema_accepts_what_is_really_sent(name: str, payloads: list[Any]) -> None:
    check = validator(name)
    for payload in payloads:
        check.validate(payload)


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("ChatCompletionRequest", {"model": "m", "messages": USER, "odd": 1}),
        ("ChatCompletionRequest", {"model": "m", "messages": [{"role": "robot", "content": "x"}]}),
        ("ChatCompletionRequest", {"model": "m", "messages": USER, "n": 0}),
        ("CompletionRequest", {"model": "m", "prompt": 3}),
        ("ChatCompletion", {"id": "x"}),
    ],
)
def test_a_schema_refuses_what_is_refused(name: str, payload: Any) -> None:
    assert not validator(name).is_valid(payload)


def test_the_schemas_say_which_fields_are_refused_or_without_effect() -> None:
    fields = openapi_schemas()["ChatCompletionRequest"]["properties"]
    assert fields["functions"]["description"].startswith("Refused: ")
    assert fields["user"]["description"].startswith("No effect: ")


def test_references_lead_somewhere() -> None:
    schemas = openapi_schemas()
    text = json.dumps(schemas)
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named <= set(schemas)
