from __future__ import annotations

import json

import pytest

from adapters.raw_json import with_model


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"a": 1}', "default"),
        (b'{"model": "m"}', "m"),
        (b'{"model": null}', None),
        (b'{"metadata": {"model": "m"}, "content": "model"}', "default"),
    ],
    ids=["none", "named", "null", "the word elsewhere"],
)
def test_a_body_that_names_no_model_gets_the_default_one(body: bytes, model: str | None):
    told = json.loads(with_model(body, lambda: "default"))
    assert told == {**json.loads(body), "model": model}


@pytest.mark.parametrize("body", [b"", b"[1]", b'{"a"', b"\xff"])
def test_what_is_no_object_is_left_to_whoever_parses_it(body: bytes):
    assert with_model(body, lambda: "default") == body
