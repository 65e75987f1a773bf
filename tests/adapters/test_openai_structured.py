"""What a client may ask of an answer's form, on both routes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapters.openai_chat import ChatAdapter
from adapters.openai_completions import CompletionsAdapter
from engines.api import Grammar, JsonObject, JsonSchema, OneOf, Regex, StructuredOutput
from engines.errors import InvalidRequest

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
ROUTES = [
    pytest.param(ChatAdapter(), {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}, id="chat"),
    pytest.param(CompletionsAdapter(), {"model": "m", "prompt": "Hi"}, id="completions"),
]
FORMS: dict[str, tuple[dict[str, Any], StructuredOutput | None]] = {
    "text": ({"response_format": {"type": "text"}}, None),
    "json_object": ({"response_format": {"type": "json_object"}}, StructuredOutput(JsonObject(), "response_format")),
    "json_schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}},
        StructuredOutput(JsonSchema(SCHEMA, "n", True), "response_format.json_schema.schema"),
    ),
    "json": ({"structured_outputs": {"json": SCHEMA}}, StructuredOutput(JsonSchema(SCHEMA), "structured_outputs.json")),
    "json text": (
        {"structured_outputs": {"json": json.dumps(SCHEMA)}},
        StructuredOutput(JsonSchema(SCHEMA), "structured_outputs.json"),
    ),
    "regex": ({"structured_outputs": {"regex": "a+"}}, StructuredOutput(Regex("a+"), "structured_outputs.regex")),
    "choice": (
        {"structured_outputs": {"choice": ["a", "b"], "regex": None}},
        StructuredOutput(OneOf(("a", "b")), "structured_outputs.choice"),
    ),
    "grammar": (
        {"structured_outputs": {"grammar": "start: /x/"}},
        StructuredOutput(Grammar("start: /x/"), "structured_outputs.grammar"),
    ),
    "any object": (
        {"structured_outputs": {"json_object": True}},
        StructuredOutput(JsonObject(), "structured_outputs.json_object"),
    ),
    "guided_json": ({"guided_json": SCHEMA}, StructuredOutput(JsonSchema(SCHEMA), "guided_json")),
    "guided_choice": ({"guided_choice": ["a"]}, StructuredOutput(OneOf(("a",)), "guided_choice")),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown type": ({"response_format": {"type": "xml"}}, "response_format.type"),
    "no type": ({"response_format": {}}, "response_format.type"),
    "no schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
        "response_format.json_schema.schema",
    ),
    "schema is a list": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": []}}},
        "response_format.json_schema.schema",
    ),
    "no name": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        "response_format.json_schema.name",
    ),
    "bad json text": ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
    "nothing": ({"structured_outputs": {}}, "structured_outputs"),
    "two members": ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice"),
    "two fields": ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
    "no choices": ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    "empty choice": ({"guided_choice": [""]}, "guided_choice[0]"),
    "unknown member": ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
}


@pytest.mark.parametrize(("adapter", "body"), ROUTES)
@pytest.mark.parametrize("form", FORMS)
def test_each_way_of_asking_becomes_one_form(adapter: Any, body: dict[str, Any], form: str) -> None:
    fields, expected = FORMS[form]
    (request,) = adapter.parse(json.dumps(body | fields).encode(), {}, "r").requests
    assert request.structured_output == expected


@pytest.mark.parametrize(("adapter", "body"), ROUTES)
@pytest.mark.parametrize("case", REFUSED)
def test_what_asks_for_no_form_or_for_two_is_refused_by_name(adapter: Any, body: dict[str, Any], case: str) -> None:
    fields, field = REFUSED[case]
    with pytest.raises(InvalidRequest) as caught:
        adapter.parse(json.dumps(body | fields).encode(), {}, "r")
    assert caught.value.field == field
