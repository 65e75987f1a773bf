"""TGI's `grammar`: `{"type": ..., "value": ...}`, as the structured output that it asks for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from adapters.tgi_errors import refuse_native
from engines.api import JsonSchema, Regex, StructuredOutput

_TYPES = ("json", "json_object", "json_schema", "regex")
_FIELD = "grammar"


def structured_output(grammar: object) -> StructuredOutput | None:
    """Raises InvalidRequest. TGI wants a schema to have `properties`; here any JSON Schema will do."""
    if grammar is None:
        return None
    if not isinstance(grammar, dict):
        refuse_native("`grammar` must be an object with `type` and `value`", _FIELD)
    members = cast("dict[str, Any]", grammar)
    kind, value = members.get("type"), members.get("value")
    if kind not in _TYPES:
        refuse_native(f"`grammar.type` must be one of {', '.join(_TYPES)}", _FIELD)
    if kind == "regex":
        if not isinstance(value, str) or not value:
            refuse_native("`grammar.value` must be a regular expression, not empty", _FIELD)
        return StructuredOutput(Regex(value), _FIELD)
    name = "answer"
    if kind == "json_schema":
        if not isinstance(value, dict) or "schema" not in value:
            refuse_native("`grammar.value` must be an object with `schema`", _FIELD)
        named = cast("dict[str, Any]", value)
        name, value = named.get("name") or name, named["schema"]
    return StructuredOutput(JsonSchema(closed(_schema(value)), str(name)), _FIELD)


def _schema(value: object) -> Mapping[str, Any]:
    """A schema as an object, or as the text of one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            refuse_native("`grammar.value` is text, but not valid JSON", _FIELD)
    if not isinstance(value, dict):
        refuse_native("`grammar.value` must be a JSON Schema, which is an object", _FIELD)
    return cast("dict[str, Any]", value)


def closed(schema: Any) -> Any:
    """The schema with every object that lists its properties shut to others, unless it says otherwise: as TGI reads it.

    Objects made of several schemas (allOf, $ref beside properties, ...) stay as they are: to shut one part of them
    would forbid what the other parts ask for.
    """
    if isinstance(schema, list):
        return [closed(item) for item in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    members = cast("dict[str, Any]", schema)
    inner = {name: _closed_member(name, value) for name, value in members.items()}
    if "properties" in members and not _SAYS_MORE & members.keys():
        inner["additionalProperties"] = False
    return inner


def _closed_member(name: str, value: Any) -> Any:
    if name in _AS_IT_IS:
        return value
    if name in _NAMED_SCHEMAS and isinstance(value, dict):
        return {key: closed(schema) for key, schema in cast("dict[str, Any]", value).items()}
    return closed(value)


_AS_IT_IS = frozenset({"const", "enum", "default", "examples", "allOf", "not", "if", "then", "else", "required"})
_NAMED_SCHEMAS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_SAYS_MORE = frozenset(
    {"additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames", "$ref", "allOf", "anyOf"}
    | {"oneOf", "not", "if", "dependentSchemas"}
)
