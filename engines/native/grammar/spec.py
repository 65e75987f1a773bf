"""From what a client asked (StructuredOutput) to what the core compiles (GrammarSpec). Knows no grammar library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from engines.api import Grammar, JsonObject, JsonSchema, OneOf, Regex, StructuredOutput
from engines.native.types import GrammarSpec


def grammar_spec(output: StructuredOutput) -> GrammarSpec:
    match output.form:
        case JsonObject():
            return GrammarSpec("json_schema", schema_text({"type": "object"}))
        case JsonSchema(schema):
            return GrammarSpec("json_schema", schema_text(schema))
        case Regex(pattern):
            return GrammarSpec("regex", pattern)
        case OneOf(choices):
            return GrammarSpec("choice", json.dumps(choices, ensure_ascii=False))
        case Grammar(text):
            return GrammarSpec("grammar", text)


# Read by the library at a schema's root. A small model may prefer white space for ever; after so much of it the
# grammar insists on going on.
_OPTIONS: Mapping[str, Any] = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,20}", "coerce_one_of": False}


def schema_text(schema: Mapping[str, Any] | bool, *, lenient: bool = False) -> str:
    """A schema as the core compiles it. `lenient`: keywords that cannot be enforced are passed over, not refused."""
    kept: Any = {} if schema is True else enforceable(schema)
    options = {**_OPTIONS, "lenient": lenient} | ({"coerce_one_of": True} if lenient else {})
    return json.dumps({**kept, "x-guidance": options} if isinstance(kept, dict) else kept, ensure_ascii=False)


def enforceable(schema: Any) -> Any:
    """The schema without keywords that ask for nothing, which the grammar library would refuse all the same.

    `uniqueItems: false` is JSON Schema's default, and `discriminator` is OpenAPI's hint beside a oneOf.
    """
    if isinstance(schema, list):
        return [enforceable(item) for item in cast("list[Any]", schema)]
    if not isinstance(schema, Mapping):
        return schema
    members = cast("Mapping[str, Any]", schema)
    return {name: _member(name, value) for name, value in members.items() if not _asks_nothing(name, members)}


def _asks_nothing(name: str, schema: Mapping[str, Any]) -> bool:
    match name:
        case "uniqueItems":
            return schema[name] is False
        case "discriminator":
            return "oneOf" in schema
        case _:
            return name == "x-guidance"


def _member(name: str, value: Any) -> Any:
    if name in _VALUES:
        return value
    if name in _NAMED_SCHEMAS and isinstance(value, Mapping):
        return {key: enforceable(schema) for key, schema in cast("Mapping[str, Any]", value).items()}
    return enforceable(value)


_VALUES = frozenset({"const", "enum", "default", "examples"})  # not schemas
_NAMED_SCHEMAS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
