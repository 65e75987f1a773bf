"""Grammars for answers that hold tool calls: which calls, with which arguments, and whether text may come instead.

A tool's arguments follow its schema. A strict tool's schema is enforced to the letter or refused; of any other,
keywords that cannot be enforced are passed over, for most clients write schemas without thinking of grammars.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from engines.api import JsonObject, JsonSchema, StructuredOutput, ToolChoice
from engines.errors import InvalidRequest
from engines.native.grammar.spec import schema_text
from engines.native.tools.formats import PLAIN_JSON, ToolFormat
from engines.native.types import GrammarSpec

MAX_CALLS = 16  # that a grammar lets an answer hold: a small model may never stop calling
_OPENS = {  # keywords beside `properties` that may ask for members of other names
    "additionalProperties", "patternProperties", "propertyNames", "minProperties", "unevaluatedProperties",
    "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "$ref", "$dynamicRef",
}  # fmt: skip
Tool = Mapping[str, Any]
SpecialToken = Callable[[str], int | None]
"""The id of a mark that is a special token, which a grammar names by its id; None for one that is text."""


def tools_of_choice(tools: Sequence[Tool], choice: ToolChoice) -> Sequence[Tool]:
    return [tool for tool in tools if tool["function"]["name"] == choice.name] if choice.mode == "named" else tools


def format_of_choice(tool_format: ToolFormat, choice: ToolChoice) -> ToolFormat:
    """Calls that must be made are made in a format that a grammar can be made of."""
    must = choice.mode in ("required", "named")
    return PLAIN_JSON if must and tool_format.shape is None else tool_format


def tool_grammar(
    tools: Sequence[Tool],
    choice: ToolChoice,
    tool_format: ToolFormat,
    special_token: SpecialToken,
    output: StructuredOutput | None = None,
) -> GrammarSpec | None:
    """None where the answer is free: tools may be called, none is strict, and no form is asked for."""
    must = choice.mode in ("required", "named")
    if not must and output is None and not any(map(is_strict, tools)):
        return None
    if tool_format.shape is None:
        raise InvalidRequest(
            "tools: strict tools and response_format beside tools cannot be enforced with this model, whose calls are "
            'written in Python; set tool_choice to "required" or to one tool.',
            field="tools",
        )
    several = choice.parallel and choice.mode != "named"
    rules = _Rules(tools_of_choice(tools, choice), several, tool_format, special_token)
    if must:
        return _lark("start: calls", rules.calls())
    if output is not None:
        return _lark("start: calls | answer", [f"answer: %json {_json_form(output)}", *rules.calls()])
    return _lark("start: anything", rules.text_or_calls())


def is_strict(tool: Tool) -> bool:
    return bool(tool["function"].get("strict"))


def _lark(start: str, rules: Sequence[str]) -> GrammarSpec:
    return GrammarSpec("lark", "\n".join(["%llguidance {}", start, *rules]))


def _json_form(output: StructuredOutput) -> str:
    match output.form:
        case JsonObject():
            return schema_text({"type": "object"})
        case JsonSchema(schema):
            return schema_text(schema)
        case _:
            raise InvalidRequest(f"{output.field}: only JSON forms can be combined with tools.", field=output.field)


class _Rules:
    """Rules in Lark, as llguidance reads it. Every method gives a rule of its own name and those it needs."""

    def __init__(
        self, tools: Sequence[Tool], parallel: bool, tool_format: ToolFormat, special_token: SpecialToken
    ) -> None:
        assert tool_format.shape is not None
        self._tools = tools
        self._parallel = parallel
        self._shape = tool_format.shape
        self._special = {mark: token_id for mark in tool_format.marks if (token_id := special_token(mark)) is not None}

    def calls(self) -> list[str]:
        """One call, or several where that is allowed."""
        mark, marked = self._text(self._shape.mark), "marked"
        if self._shape.mark_each:
            marked += self._more(f"{mark} marked")
        return [f"calls: {mark} {marked}", *self._marked()]

    def text_or_calls(self) -> list[str]:
        """Text in which a mark binds what follows; where calls have no mark, either text or calls."""
        shape = self._shape
        if not shape.mark:
            return ["anything: calls | TEXT", r"TEXT: /([^{\[\s](.|\n)*)?/", *self.calls()]
        times = f"{{0,{MAX_CALLS}}}" if shape.mark_each and self._parallel else "?"
        token_id = self._special.get(shape.mark)
        trigger = f"trigger[lazy]: TEXT {json.dumps(shape.mark)}"
        if token_id is not None:
            trigger = f"trigger: TEXT <[{token_id}]>"
        return [f"anything: (trigger marked){times} rest", "rest: TEXT", trigger, r"TEXT: /(.|\n)*/", *self._marked()]

    def _marked(self) -> list[str]:
        """What follows a mark."""
        shape = self._shape
        one = "call"
        if not shape.mark_each:
            one = f"{self._text(shape.opening)} call {self._more('call')} {self._text(shape.closing)}"
        calls = " | ".join(f"call_{i}" for i in range(len(self._tools)))
        rules = [f"marked: {one}", f"call: {calls}"]
        for i, tool in enumerate(self._tools):
            function = cast("Mapping[str, Any]", tool["function"])
            head = self._text(f"{shape.before_name}{function['name']}{shape.before_arguments}")
            rules += [f"call_{i}: {head} args_{i} {self._text(shape.after)}", f"args_{i}: %json {_schema(tool)}"]
        return rules

    def _more(self, call: str) -> str:
        return f" ({self._text(self._shape.separator)} {call}){{0,{MAX_CALLS - 1}}}" if self._parallel else ""

    def _text(self, text: str) -> str:
        """Literals, with special tokens by their ids."""
        if not self._special:
            return json.dumps(text, ensure_ascii=False) if text else ""
        parts = re.split(f"({'|'.join(map(re.escape, self._special))})", text)
        written = (
            f"<[{self._special[part]}]>" if part in self._special else json.dumps(part, ensure_ascii=False)
            for part in parts
            if part
        )
        return " ".join(written)


def _schema(tool: Tool) -> str:
    """Of a tool's arguments: those that it describes and, unless its schema says so, no others.

    JSON Schema takes any other member where `additionalProperties` is not said. A function takes none that it does not
    have, so that a schema which lists its properties is closed, and a tool without one has no arguments.
    """
    given: Mapping[str, Any] | None = tool["function"].get("parameters")
    schema: dict[str, Any] = {"type": "object", "properties": {}} if given is None else dict(given)
    if _lists_all(schema):
        schema["additionalProperties"] = False
    return schema_text(schema, lenient=not is_strict(tool))


def _lists_all(schema: Mapping[str, Any]) -> bool:
    """Whether the schema's `properties` are all that it speaks of. It may be malformed: that is told later."""
    listed, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(listed, Mapping) or not isinstance(required, list) or _OPENS & schema.keys():
        return False
    return all(isinstance(name, str) and name in listed for name in cast("list[Any]", required))
