"""The ways in which models write tool calls: how each is told from a chat template, read, and made a grammar of.

A format is chosen once, from the template, and may be set by hand (`tool_parser`). To add one: a reader, and a
`ToolFormat` in FORMATS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engines.native.tools import mistral, pythonic
from engines.native.tools.calls import CallReader, NewId, call_id, short_call_id
from engines.native.tools.readers import MarkedReader, WholeReader


@dataclass(frozen=True, slots=True, kw_only=True)
class CallShape:
    """How calls are written, for grammars.

    mark opening CALL separator CALL ... closing, or, with `mark_each`, mark CALL separator mark CALL ..., where CALL is
    before_name, the name, before_arguments, the arguments as JSON, after.
    """

    mark: str = ""
    mark_each: bool = False
    opening: str = ""
    before_name: str = '{"name": "'
    before_arguments: str = '", "arguments": '
    after: str = "}"
    separator: str = ", "
    closing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """`reader` is given the names of the tools. `shape` is None where no grammar can be made of schemas."""

    name: str
    signs: tuple[str, ...]  # of which a template that teaches this format has one
    marks: tuple[str, ...]  # that stand in the text around calls; read even where they are special tokens
    reader: Callable[[frozenset[str]], CallReader]
    shape: CallShape | None
    new_id: NewId = call_id


HERMES = ToolFormat(
    name="hermes",
    signs=("<tool_call>",),
    marks=("<tool_call>", "</tool_call>"),
    reader=lambda _: MarkedReader("<tool_call>", "</tool_call>"),
    shape=CallShape(
        mark="<tool_call>", mark_each=True, before_name='\n{"name": "', after="}\n</tool_call>", separator="\n"
    ),
)
MISTRAL = ToolFormat(
    name="mistral",
    signs=("[TOOL_CALLS]",),
    marks=mistral.MARKS,
    reader=lambda _: mistral.MistralReader(),
    shape=CallShape(mark="[TOOL_CALLS]", opening="[", closing="]"),
    new_id=short_call_id,
)
MISTRAL_NAMED = ToolFormat(
    name="mistral_named",
    signs=("[ARGS]",),
    marks=mistral.MARKS,
    reader=lambda _: mistral.MistralReader(),
    shape=CallShape(
        mark="[TOOL_CALLS]", mark_each=True, before_name="", before_arguments="[ARGS]", after="", separator=""
    ),
    new_id=short_call_id,
)
PYTHONIC = ToolFormat(
    name="pythonic",
    signs=("<|python_start|>", "func_name1("),
    marks=pythonic.MARKS,
    reader=pythonic.PythonicReader,
    shape=None,
)
LLAMA3_JSON = ToolFormat(
    name="llama3_json",
    signs=("<|python_tag|>", '"parameters": dictionary'),
    marks=("<|python_tag|>",),
    reader=lambda names: WholeReader(names, ("<|python_tag|>",)),
    shape=CallShape(before_arguments='", "parameters": ', separator="; "),
)
PLAIN_JSON = ToolFormat(name="json", signs=(), marks=(), reader=WholeReader, shape=CallShape(opening="[", closing="]"))

FORMATS: Mapping[str, ToolFormat] = {
    tool_format.name: tool_format for tool_format in (MISTRAL_NAMED, MISTRAL, HERMES, PYTHONIC, LLAMA3_JSON, PLAIN_JSON)
}
"""In the order in which their signs are looked for; the last has none and is what is left."""


def find_format(template: str, *, knows_tools: bool) -> ToolFormat:
    """The format that a chat template teaches.

    A template that knows no tools is taught Hermes' by prompt.py: of all formats most models have seen that one.
    """
    if not knows_tools:
        return HERMES
    return next((one for one in FORMATS.values() if any(sign in template for sign in one.signs)), PLAIN_JSON)
