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
    return StructuredOutput(JsonSchema(_schema(value), str(name)), _FIELD)


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
