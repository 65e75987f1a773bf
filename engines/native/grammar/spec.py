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
            return GrammarSpec("json_schema", '{"type":"object"}')
        case JsonSchema(schema):
            return GrammarSpec("json_schema", json.dumps(enforceable(schema), ensure_ascii=False))
        case Regex(pattern):
            return GrammarSpec("regex", pattern)
        case OneOf(choices):
            return GrammarSpec("choice", json.dumps(choices, ensure_ascii=False))
        case Grammar(text):
            return GrammarSpec("grammar", text)


def enforceable(schema: Any) -> Any:
    """The schema without keywords that ask for nothing, which the grammar library would refuse all the same.

    `uniqueItems: false` is JSON Schema's default, and `discriminator` is OpenAPI's hint beside a oneOf.
    """
    if isinstance(schema, list):
        return [enforceable(item) for item in cast("list[Any]", schema)]
    if not isinstance(schema, Mapping):
        return schema
    return {
        name: value if name in _VERBATIM else enforceable(value)
        for name, value in cast("Mapping[str, Any]", schema).items()
        if not (name == "uniqueItems" and value is False) and not (name == "discriminator" and "oneOf" in schema)
    }


_VERBATIM = frozenset({"const", "enum", "default", "examples"})  # values, not schemas
