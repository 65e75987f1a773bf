"""TGI's grammar shapes, on its native route and in chat's response_format."""

from __future__ import annotations

import json

import pytest

from adapters.openai_chat_types import ChatCompletionRequest
from adapters.tgi import plan_of
from adapters.tgi_types import NativeLimits, NativeRequest
from adapters.wire import parse_body
from engines.api import JsonObject, JsonSchema, Regex
from engines.errors import InvalidRequest

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def native(grammar: object):
    body = json.dumps({"inputs": "hi", "parameters": {"grammar": grammar}}).encode()
    plan = plan_of(
        parse_body(NativeRequest, body), "r", limits=NativeLimits(), model="m", stream=False, full_text=False
    )
    return plan.generation.structured_output


def chat(response_format: object):
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "response_format": response_format}
    return parse_body(ChatCompletionRequest, json.dumps(body).encode()).structured_output()


@pytest.mark.parametrize(
    ("grammar", "form"),
    [
        ({"type": "json", "value": SCHEMA}, JsonSchema(SCHEMA)),
        ({"type": "json_object", "value": json.dumps(SCHEMA)}, JsonSchema(SCHEMA)),
        ({"type": "json_schema", "value": {"name": "n", "schema": SCHEMA}}, JsonSchema(SCHEMA, "n")),
        ({"type": "json_schema", "value": {"schema": SCHEMA}}, JsonSchema(SCHEMA)),
        ({"type": "regex", "value": "[0-9]+"}, Regex("[0-9]+")),
    ],
    ids=["json", "json as text", "named schema", "schema", "regex"],
)
def test_both_routes_read_tgis_shapes(grammar, form):
    assert native(grammar).form == form
    assert chat(grammar).form == form


@pytest.mark.parametrize(
    ("schema", "read"),
    [
        ({"properties": {"a": {}}}, {"properties": {"a": {}}, "additionalProperties": False}),
        ({"properties": {}, "additionalProperties": True}, None),
        ({"type": "object"}, None),
        ({"properties": {"a": {}}, "allOf": [{"properties": {"b": {}}}]}, None),
        ({"const": {"properties": {}}}, None),
        (
            {"$defs": {"d": {"properties": {"properties": {"type": "string"}}}}, "items": {"$ref": "#/$defs/d"}},
            {
                "$defs": {"d": {"properties": {"properties": {"type": "string"}}, "additionalProperties": False}},
                "items": {"$ref": "#/$defs/d"},
            },
        ),
    ],
    ids=["listed", "said", "free", "composed", "a value", "nested"],
)
def test_an_object_that_lists_its_properties_has_no_others_unless_it_says_so(schema, read):
    assert native({"type": "json", "value": schema}).form == JsonSchema(read or schema)


def test_openais_schemas_are_read_as_they_stand():
    schema = {"type": "object", "properties": {"a": {}}}
    form = chat({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}).form
    assert form == JsonSchema(schema, "n")


def test_no_grammar_is_no_constraint():
    assert native(None) is None


def test_openais_json_object_is_still_any_object():
    assert chat({"type": "json_object"}).form == JsonObject()


@pytest.mark.parametrize(
    "grammar",
    [
        "json",
        {"type": "xml", "value": ""},
        {"type": "json"},
        {"type": "json", "value": "{"},
        {"type": "json", "value": 3},
        {"type": "json_schema", "value": SCHEMA},
        {"type": "regex", "value": ""},
    ],
    ids=str,
)
def test_anything_else_is_refused_by_name(grammar):
    with pytest.raises(InvalidRequest, match="grammar") as refused:
        native(grammar)
    assert refused.value.field == "grammar"


@pytest.mark.parametrize(
    "response_format", [{"type": "regex"}, {"type": "json_schema"}, {"type": "json", "value": "{"}], ids=str
)
def test_chat_names_the_field_that_is_missing_or_wrong(response_format):
    with pytest.raises(InvalidRequest) as refused:
        chat(response_format)
    assert refused.value.field.startswith("response_format")
