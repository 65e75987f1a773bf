"""Structured output on the wire: OpenAI's `response_format`, vLLM's `structured_outputs` and its older guided_* fields.

Reads them into one StructuredOutput. Whether a schema can be enforced, the engine says.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from adapters.tgi_grammar import closed
from adapters.wire import NoEffect, Refused, WireModel, refuse
from engines.api import Grammar, JsonObject, JsonSchema, OneOf, Regex, StructuredOutput

MAX_GRAMMAR_CHARS = 65536
MAX_CHOICES = 1024


def _schema(value: Any) -> Any:
    if not isinstance(value, dict | bool):
        raise PydanticCustomError("schema_type", "must be a JSON Schema, which is an object or a boolean")
    return value  # pyright: ignore[reportUnknownVariableType]


def _schema_or_text(value: Any) -> Any:
    """vLLM takes a schema as JSON text, too."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise PydanticCustomError("schema_type", "must be a JSON Schema; the text is not valid JSON") from None
    return _schema(value)


_SCHEMA_TYPES: list[dict[str, Any]] = [{"type": "object"}, {"type": "boolean"}]
JsonSchemaValue = Annotated[Any, AfterValidator(_schema), WithJsonSchema({"anyOf": _SCHEMA_TYPES})]
JsonSchemaOrText = Annotated[
    Any, AfterValidator(_schema_or_text), WithJsonSchema({"anyOf": [*_SCHEMA_TYPES, {"type": "string"}]})
]
GrammarText = Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARS)]
Choice = Annotated[str, Field(min_length=1, max_length=4096)]
Choices = Annotated[list[Choice], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]


class TextFormat(WireModel):
    type: Literal["text"]


class JsonObjectFormat(WireModel):
    """With `value`, a schema in Text Generation Inference's shape; so are `json` and `regex` below."""

    type: Literal["json_object", "json"]
    value: JsonSchemaOrText | None = None


class RegexFormat(WireModel):
    type: Literal["regex"]
    value: GrammarText


class NamedSchema(WireModel):
    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    schema_: JsonSchemaValue | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ValuedSchema(WireModel):
    name: str | None = Field(default=None, min_length=1, max_length=256)
    schema_: JsonSchemaOrText = Field(alias="schema")


class JsonSchemaFormat(WireModel):
    """`value` in place of `json_schema` is Text Generation Inference's shape."""

    type: Literal["json_schema"]
    json_schema: NamedSchema | None = None
    value: ValuedSchema | None = None


ARM_POSITIONS = {"response_format": 1}
ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat | RegexFormat, Field(discriminator="type")]


class StructuredOutputs(WireModel):
    """vLLM's field of this name; one member says what is wanted, the others are left out."""

    json_: JsonSchemaOrText | None = Field(default=None, alias="json")
    regex: GrammarText | None = None
    choice: Choices | None = None
    grammar: GrammarText | None = None
    json_object: bool | None = None

    structural_tag: Annotated[Any, Refused("send the whole form as grammar; tools have grammars of their own")] = None
    whitespace_pattern: Annotated[Any, Refused("whitespace between JSON tokens cannot be chosen; send a grammar")] = (
        None
    )
    disable_any_whitespace: Annotated[
        Any, Refused("whitespace between JSON tokens cannot be chosen; send a grammar", (False,))
    ] = None
    disable_additional_properties: Annotated[
        Any, Refused("a schema means what it says; give it additionalProperties", (False,))
    ] = None
    disable_fallback: Annotated[
        bool | None, NoEffect("there is one library for forms, and nothing to fall back to.")
    ] = None


class StructuredFields(WireModel):
    """What both generating routes take."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonSchemaOrText | None = None
    guided_regex: GrammarText | None = None
    guided_choice: Choices | None = None
    guided_grammar: GrammarText | None = None

    def structured_output(self) -> StructuredOutput | None:
        """Raises InvalidRequest where two fields ask for a form, or one asks for none."""
        asked = [*self._response_format(), *forms_of(self.structured_outputs), *self._guided()]
        return only_form(asked)

    def _response_format(self) -> list[StructuredOutput]:
        match self.response_format:
            case JsonObjectFormat(value=schema):
                if schema is None:
                    return [StructuredOutput(JsonObject(), "response_format")]
                return [StructuredOutput(JsonSchema(closed(schema)), "response_format.value")]
            case RegexFormat(value=pattern):
                return [StructuredOutput(Regex(pattern), "response_format.value")]
            case JsonSchemaFormat(json_schema=None, value=ValuedSchema(schema_=schema, name=name)):
                form = JsonSchema(closed(schema), name or "answer")
                return [StructuredOutput(form, "response_format.value.schema")]
            case JsonSchemaFormat(json_schema=named):
                field = "response_format.json_schema.schema"
                if named is None:
                    refuse("response_format.json_schema", "this field is required", code="missing_required_parameter")
                if named.schema_ is None:
                    refuse(field, "this field is required", code="missing_required_parameter")
                return [StructuredOutput(JsonSchema(named.schema_, named.name, named.strict), field)]
            case _:
                return []

    def _guided(self) -> list[StructuredOutput]:
        return _forms("guided_", self.guided_json, self.guided_regex, self.guided_choice, self.guided_grammar)


def forms_of(asked: StructuredOutputs | None) -> list[StructuredOutput]:
    """What its members ask for. Raises InvalidRequest where there are none."""
    if asked is None:
        return []
    members = _forms("structured_outputs.", asked.json_, asked.regex, asked.choice, asked.grammar)
    if asked.json_object:
        members.append(StructuredOutput(JsonObject(), "structured_outputs.json_object"))
    if not members:
        refuse("structured_outputs", "one of json, regex, choice, grammar and json_object is required")
    return members


def only_form(asked: Sequence[StructuredOutput]) -> StructuredOutput | None:
    """Raises InvalidRequest where two fields ask for a form."""
    if len(asked) > 1:
        refuse(asked[1].field, f"cannot be combined with {asked[0].field}; an answer has one form")
    return asked[0] if asked else None


def _forms(
    prefix: str, schema: Any, regex: str | None, choice: list[str] | None, grammar: str | None
) -> list[StructuredOutput]:
    found: list[StructuredOutput] = []
    if schema is not None:
        found.append(StructuredOutput(JsonSchema(schema), f"{prefix}json"))
    if regex is not None:
        found.append(StructuredOutput(Regex(regex), f"{prefix}regex"))
    if choice is not None:
        found.append(StructuredOutput(OneOf(tuple(choice)), f"{prefix}choice"))
    if grammar is not None:
        found.append(StructuredOutput(Grammar(grammar), f"{prefix}grammar"))
    return found
