"""The wire model of POST /v1/responses: what may be asked. Items are in openai_responses_items.py.

Every field of OpenAI's request type stands here: as a field that is honoured, marked `NoEffect`, or marked `Refused`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag

from adapters.functions import (
    MAX_TOOLS,
    Function,
    FunctionName,
    Parameters,
    as_tools,
    check_offered,
    check_unique,
)
from adapters.openai_responses_items import Input
from adapters.openai_structured import (
    JsonObjectFormat,
    JsonSchemaValue,
    StructuredOutputs,
    TextFormat,
    forms_of,
    only_form,
)
from adapters.openai_tools import CHOICE_KIND
from adapters.openai_types import MAX_LOGPROBS, MAX_TOKENS, PlatformFields, SamplingFields, no_effect_fields
from adapters.wire import NoEffect, Refused, WireModel, refuse, tagged
from engines.api import JsonObject, JsonSchema, StructuredOutput, ToolChoice

LOGPROBS = "message.output_text.logprobs"

# --- text and reasoning -----------------------------------------------------------------------------------------------


class JsonSchemaFormat(WireModel):
    type: Literal["json_schema"]
    name: str = Field(min_length=1, max_length=256)
    schema_: JsonSchemaValue = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextConfig(WireModel):
    format: Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Annotated[Any, Refused('only "medium", the default, is supported', ("medium",))] = None

    def structured_output(self) -> StructuredOutput | None:
        match self.format:
            case JsonObjectFormat():
                return StructuredOutput(JsonObject(), "text.format")
            case JsonSchemaFormat(schema_=schema, name=name, strict=strict):
                return StructuredOutput(JsonSchema(schema, name, strict), "text.format.schema")
            case _:
                return None


_NO_SUMMARY = "reasoning is told whole, as the content of its item."


class Reasoning(WireModel):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Annotated[Literal["auto", "concise", "detailed"] | None, NoEffect(_NO_SUMMARY)] = None
    generate_summary: Annotated[Literal["auto", "concise", "detailed"] | None, NoEffect(_NO_SUMMARY)] = None
    context: Annotated[
        Literal["auto", "current_turn", "all_turns"] | None, NoEffect("the chat template decides what it reads.")
    ] = None
    mode: Annotated[Any, Refused('only "standard" is supported', ("standard",))] = None

    def template_kwargs(self) -> dict[str, Any]:
        """What templates know of it: how much to reason, and whether to at all."""
        effort = self.effort
        return {} if effort is None else {"reasoning_effort": effort, "enable_thinking": effort != "none"}


# --- tools ------------------------------------------------------------------------------------------------------------


class FunctionTool(WireModel):
    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: Parameters | None = None
    strict: bool | None = None
    output_schema: Annotated[Any, NoEffect("describes what the tool gives back; models are not shown it.")] = None
    allowed_callers: Annotated[Any, Refused("programs that call tools are not supported", ([], ["direct"]))] = None
    defer_loading: Annotated[Any, Refused("tools are all loaded at once", (False,))] = None
    async_: Annotated[Any, Refused("tools are waited for", (False,))] = Field(default=None, alias="async")

    def function(self) -> Function:
        return Function(self.name, self.description, self.parameters, self.strict)


class NamedTool(WireModel):
    type: Literal["function"]
    name: FunctionName


class AllowedTools(WireModel):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=MAX_TOOLS)


Choice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(tagged("mode"))]
    | Annotated[NamedTool, Tag(tagged("named"))]
    | Annotated[AllowedTools, Tag(tagged("allowed"))],
    CHOICE_KIND,
]

# --- the request ------------------------------------------------------------------------------------------------------


class ResponsesStreamOptions(WireModel):
    include_obfuscation: Annotated[
        bool | None, Refused("streams are not padded with random characters; leave it out or send false", (False,))
    ] = None


MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
_NO_STATE = "conversations are kept as chains of responses; send previous_response_id"


class ResponsesRequest(SamplingFields, PlatformFields):
    """POST /v1/responses."""

    arm_positions: ClassVar[Mapping[str, int]] = {"text": 2}

    input: Input
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    previous_response_id: str | None = Field(default=None, min_length=1, max_length=256)
    store: bool | None = None  # default: true, as OpenAI has it
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    tools: list[FunctionTool] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    stream_options: ResponsesStreamOptions | None = None
    structured_outputs: StructuredOutputs | None = None  # beyond OpenAI: forms that text.format has no words for
    chat_template_kwargs: dict[str, Any] | None = None  # beyond OpenAI
    thinking_token_budget: int | None = Field(default=None, ge=-1, le=MAX_TOKENS)  # beyond OpenAI; -1: no limit

    max_tool_calls: Annotated[
        int | None, NoEffect("bounds the calls of OpenAI's built-in tools; there are none here.")
    ] = None

    request_id: Annotated[Any, Refused("whoever knows a response's id may read it, so ids are made here")] = None
    background: Annotated[Any, Refused("answers are not made in the background", (False,))] = None
    background_options: Annotated[Any, Refused("answers are not made in the background")] = None
    conversation: Annotated[Any, Refused(_NO_STATE)] = None
    context_management: Annotated[Any, Refused("conversations are not compacted", ([],))] = None
    prompt: Annotated[Any, Refused("prompt templates are not kept here")] = None
    truncation: Annotated[Any, Refused('only "disabled", the default, is supported', ("disabled",))] = None
    moderation: Annotated[Any, Refused("moderation is not supported")] = None
    image: Annotated[Any, Refused("images are not supported")] = None
    access_programs: Annotated[Any, Refused("concerns models of OpenAI's")] = None

    def check_combinations(self) -> None:
        """Raises InvalidRequest for fields that contradict each other."""
        if self.stream_options is not None and not self.stream:
            refuse("stream_options", "only allowed when stream is true")
        if self.top_logprobs and not self.tells_logprobs:
            refuse("top_logprobs", f"only allowed when include has {LOGPROBS}")
        names = [tool.name for tool in self.tools or ()]
        check_unique(names)
        match self.tool_choice:
            case NamedTool(name=name):
                check_offered("tool_choice.name", name, names)
            case AllowedTools(tools=tools):
                for index, tool in enumerate(tools):
                    check_offered(f"tool_choice.tools[{index}].name", tool.name, names)
            case "required" if not names:
                refuse("tool_choice", 'only allowed to be "required" when tools are given')
            case _:
                pass

    def structured_output(self) -> StructuredOutput | None:
        """Raises InvalidRequest where two fields ask for a form, or one asks for none."""
        form = self.text.structured_output() if self.text else None
        return only_form([*([] if form is None else [form]), *forms_of(self.structured_outputs)])

    @property
    def tells_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    def offered_tools(self) -> tuple[Mapping[str, Any], ...] | None:
        """The tools that may be called, as `ChatPrompt` holds them."""
        tools: Sequence[FunctionTool] = self.tools or ()
        if self.tool_choice == "none":
            return None
        if isinstance(self.tool_choice, AllowedTools):
            allowed = {tool.name for tool in self.tool_choice.tools}
            tools = [tool for tool in tools if tool.name in allowed]
        return as_tools([tool.function() for tool in tools])

    def chosen(self) -> ToolChoice:
        parallel = self.parallel_tool_calls is not False
        match self.tool_choice:
            case NamedTool(name=name):
                return ToolChoice("named", name, parallel)
            case AllowedTools(mode=mode):
                return ToolChoice(mode, parallel=parallel)
            case "none" | "auto" | "required" as mode:
                return ToolChoice(mode, parallel=parallel)
            case _:
                return ToolChoice(parallel=parallel)


NO_EFFECT_FIELDS: Mapping[str, str] = no_effect_fields(ResponsesRequest)
"""Fields of a request that our own engines accept without effect, with the reason for each."""
