"""Functions that a client offers, whatever the protocol: the tools of a `ChatPrompt`, and whether names mean something.

Knows no wire shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from adapters.wire import refuse

MAX_TOOLS = 128


def _parameters(value: Any) -> Any:
    if value is not None and not isinstance(value, dict):
        raise PydanticCustomError("schema_type", "must be a JSON Schema of an object")
    return value  # pyright: ignore[reportUnknownVariableType]


FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.:-]{1,128}$")]
Parameters = Annotated[Any, AfterValidator(_parameters), WithJsonSchema({"type": "object"})]


@dataclass(frozen=True, slots=True)
class Function:
    """`parameters` is a JSON Schema of an object, None for one that takes anything."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    strict: bool | None = None


def as_tools(functions: Sequence[Function]) -> tuple[Mapping[str, Any], ...] | None:
    """As `ChatPrompt` holds them; None where there are none."""
    return tuple({"type": "function", "function": _definition(function)} for function in functions) or None


def _definition(function: Function) -> dict[str, Any]:
    members = {
        "name": function.name,
        "description": function.description,
        "parameters": function.parameters,
        "strict": function.strict,
    }
    return {name: value for name, value in members.items() if value is not None}


def check_unique(names: Sequence[str], place: str = "name") -> None:
    """Raises InvalidRequest where two tools have one name. `place` is where a tool says it."""
    for index, name in enumerate(names):
        if name in names[:index]:
            refuse(f"tools[{index}].{place}", f"another tool is called '{name}'")


def check_offered(field: str, name: str, names: Sequence[str]) -> None:
    """Raises InvalidRequest where a choice names a tool that is not there."""
    if name not in names:
        refuse(field, f"no tool is called '{name}'")
