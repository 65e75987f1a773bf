"""Tools on the wire: what a client offers, what it wants called, and calls in answers. Says nothing of messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import AliasChoices, BeforeValidator, Discriminator, Field, Tag
from typing_extensions import TypedDict

from adapters.functions import MAX_TOOLS, FunctionName, Parameters, check_offered, check_unique
from adapters.wire import WireModel, refuse, tagged
from engines.api import ToolCallDelta, ToolChoice

# --- what is asked ----------------------------------------------------------------------------------------------------


class FunctionDefinition(WireModel):
    """TGI calls `parameters` `arguments`, too."""

    name: FunctionName
    description: str | None = None
    parameters: Parameters | None = Field(default=None, validation_alias=AliasChoices("parameters", "arguments"))
    strict: bool | None = None


class FunctionTool(WireModel):
    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(WireModel):
    name: FunctionName


class NamedTool(WireModel):
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(WireModel):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=MAX_TOOLS)


class AllowedToolsChoice(WireModel):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _choice_kind(value: object) -> str | None:
    if isinstance(value, str):
        return tagged("mode")
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)  # pyright: ignore
    return {"function": tagged("named"), "allowed_tools": tagged("allowed")}.get(str(kind))  # pyright: ignore


CHOICE_KIND = Discriminator(
    _choice_kind,
    custom_error_type="tool_choice",
    custom_error_message='must be "none", "auto", "required", or an object of type function or allowed_tools',
)
"""Chooses among "mode", "named" and "allowed", the arms of `tool_choice`, which OpenAI's protocols fill differently."""

_MODES = ("none", "auto", "required")


def _named(value: object) -> object:
    """TGI's shapes of a named tool, its name alone and an object without `type`, as OpenAI's."""
    if isinstance(value, str) and value not in _MODES:
        return {"type": "function", "function": {"name": value}}
    if isinstance(value, dict) and "function" in value and "type" not in value:
        return {"type": "function", **cast("dict[str, Any]", value)}
    return value  # pyright: ignore[reportUnknownVariableType]


Choice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(tagged("mode"))]
    | Annotated[NamedTool, Tag(tagged("named"))]
    | Annotated[AllowedToolsChoice, Tag(tagged("allowed"))],
    CHOICE_KIND,
    BeforeValidator(_named),
]


class ToolFields(WireModel):
    """What a chat request says of tools."""

    tools: list[FunctionTool] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None

    def offered_tools(self) -> tuple[Mapping[str, Any], ...]:
        """The tools that may be called, as `ChatPrompt` holds them; none where none may be."""
        tools = self.tools or []
        if self.tool_choice == "none":
            return ()
        if isinstance(self.tool_choice, AllowedToolsChoice):
            allowed = {tool.function.name for tool in self.tool_choice.allowed_tools.tools}
            tools = [tool for tool in tools if tool.function.name in allowed]
        return tuple(tool.model_dump(exclude_none=True) for tool in tools)

    def chosen(self) -> ToolChoice:
        """Raises InvalidRequest for a choice among tools that are not there."""
        self._check_names()
        parallel = self.parallel_tool_calls is not False
        match self.tool_choice:
            case NamedTool(function=function):
                return ToolChoice("named", function.name, parallel)
            case AllowedToolsChoice(allowed_tools=allowed):
                return ToolChoice(allowed.mode, parallel=parallel)
            case "none" | "auto" | "required" as mode:
                return ToolChoice(mode, parallel=parallel)
            case _:
                return ToolChoice(parallel=parallel)

    def _check_names(self) -> None:
        names = [tool.function.name for tool in self.tools or ()]
        check_unique(names, "function.name")
        match self.tool_choice:
            case NamedTool(function=function):
                check_offered("tool_choice.function.name", function.name, names)
            case AllowedToolsChoice(allowed_tools=allowed):
                for index, tool in enumerate(allowed.tools):
                    path = f"tool_choice.allowed_tools.tools[{index}].function.name"
                    check_offered(path, tool.function.name, names)
            case "required" if not names:
                refuse("tool_choice", 'only allowed to be "required" when tools are given')
            case _:
                pass


# --- what is answered -------------------------------------------------------------------------------------------------


class AnsweredFunction(TypedDict):
    name: str
    arguments: str


class AnsweredCall(TypedDict):
    id: str
    type: Literal["function"]
    function: AnsweredFunction


class FunctionPiece(TypedDict, total=False):
    name: str
    arguments: str


class CallPiece(TypedDict, total=False):
    """`id`, `type` and the function's name stand in a call's first piece alone."""

    index: int
    id: str
    type: Literal["function"]
    function: FunctionPiece


def call_piece(delta: ToolCallDelta) -> CallPiece:
    if delta.id is None or delta.name is None:
        return {"index": delta.index, "function": {"arguments": delta.arguments}}
    return {
        "index": delta.index,
        "id": delta.id,
        "type": "function",
        "function": {"name": delta.name, "arguments": delta.arguments},
    }


def whole_calls(deltas: Sequence[ToolCallDelta]) -> list[AnsweredCall]:
    """The calls of one choice, whole."""
    calls: list[AnsweredCall] = []
    for delta in deltas:
        if delta.index == len(calls):
            function: AnsweredFunction = {"name": delta.name or "", "arguments": ""}
            calls.append({"id": delta.id or "", "type": "function", "function": function})
        calls[delta.index]["function"]["arguments"] += delta.arguments
    return calls
