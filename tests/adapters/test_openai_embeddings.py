from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from openai.types import CreateEmbeddingResponse
from pydantic import TypeAdapter

from adapters.openai_embeddings import MAX_INPUTS, EmbeddingList, embeddings_body, parse_embeddings
from engines.api import Embeddings, TextPrompt, TokensPrompt
from engines.errors import InvalidRequest


def parsed(**fields: Any) -> Any:
    return parse_embeddings(json.dumps({"model": "m", "input": "a", **fields}).encode(), "r")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("a", (TextPrompt("a"),)),
        (["a", "b"], (TextPrompt("a"), TextPrompt("b"))),
        ([1, 2], (TokensPrompt((1, 2)),)),
        ([[1, 2], [3]], (TokensPrompt((1, 2)), TokensPrompt((3,)))),
    ],
    ids=["text", "texts", "tokens", "token-arrays"],
)
def test_input_is_texts_or_tokens_one_or_many(written: Any, read: tuple[Any, ...]):
    assert parsed(input=written).request.inputs == read


def test_every_field_arrives():
    call = parsed(
        dimensions=7,
        cache_salt="s",
        user="u",
        add_special_tokens=False,
        truncate_prompt_tokens=-1,
        encoding_format="base64",
    )
    assert call.as_base64
    assert call.request.inputs == (TextPrompt("a", False),)
    assert (call.request.dimensions, call.request.truncate_prompt_tokens, call.request.cache_salt) == (7, -1, "s")
    assert call.request.forwarded == {"user": "u"}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [[]]}, "input"),
        ({"input": [[1], []]}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [[1], "a"]}, "input"),
        ({"input": [1, "a"]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": [1.5]}, "input"),
        ({"input": [True]}, "input"),
        ({"input": None}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, "input"),
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": "8"}, "dimensions"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"user": 3}, "user"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"input_type": "query"}, "input_type"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], named: str):
    with pytest.raises(InvalidRequest) as refused:
        parsed(**fields)
    assert refused.value.field == named


def test_as_many_inputs_as_openai_takes_are_taken():
    assert len(parsed(input=["a"] * MAX_INPUTS).request.inputs) == MAX_INPUTS


def body(told: Embeddings, call: Any) -> bytes:
    written = b"".join(embeddings_body(told, call))
    TypeAdapter(EmbeddingList).validate_json(written, strict=True)
    return written


def test_numbers_and_base64_say_the_same_vectors():
    vectors = (struct.pack("<3f", 0.1, -2.5, 3e-8), struct.pack("<3f", 1, 2, 3))
    told = Embeddings(vectors, 9)
    asked = {"input": ["a", "b"]}
    numbers = CreateEmbeddingResponse.model_validate_json(body(told, parsed(**asked)))
    coded = json.loads(body(told, parsed(**asked, encoding_format="base64")))
    assert [struct.pack("<3f", *item.embedding) for item in numbers.data] == list(vectors)
    assert [base64.b64decode(item["embedding"]) for item in coded["data"]] == list(vectors)
    assert [item.index for item in numbers.data] == [0, 1]
    assert (numbers.usage.prompt_tokens, numbers.usage.total_tokens) == (9, 9)
    assert coded["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
    assert numbers.model == "m"
