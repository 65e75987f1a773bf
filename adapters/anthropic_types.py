"""The wire models of POST /v1/messages and /v1/messages/count_tokens: requests and answers.

Every field of Anthropic's request type stands here: honoured, marked `NoEffect`, or marked `Refused`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from adapters.anthropic_blocks import CacheControl, Messages, Texts, as_messages, system_message
from adapters.functions import MAX_TOOLS, Function, FunctionName, Parameters, as_tools, check_offered, check_unique
from adapters.openai_structured import JsonSchemaValue
from adapters.openai_types import MAX_TOKEN_ID, MAX_TOKENS, StopString
from adapters.watermark import WatermarkField
from adapters.wire import NoEffect, Refused, WireModel, refuse
from engines.api import ChatPrompt, JsonSchema, StructuredOutput, ToolChoice

# --- tools ------------------------------------------------------------------------------------------------------------


class Tool(WireModel):
    type: Literal["custom"] | None = None
    name: FunctionName
    description: str | None = None
    input_schema: Parameters
    strict: bool | None = None
    cache_control: CacheControl = None
    eager_input_streaming: Annotated[bool | None, NoEffect("arguments are always streamed as they come.")] = None
    input_examples: Annotated[Any, Refused("examples of inputs are not supported", ([],))] = None
    allowed_callers: Annotated[Any, Refused("programs that call tools are not supported", ([], ["direct"]))] = None
    defer_loading: Annotated[Any, Refused("tools are all loaded at once", (False,))] = None


class AutoChoice(WireModel):
    type: Literal["auto"]
    disable_parallel_tool_use: bool | None = None


class AnyChoice(WireModel):
    type: Literal["any"]
    disable_parallel_tool_use: bool | None = None


class NamedChoice(WireModel):
    type: Literal["tool"]
    name: FunctionName
    disable_parallel_tool_use: bool | None = None


class NoChoice(WireModel):
    type: Literal["none"]


Choice = Annotated[AutoChoice | AnyChoice | NamedChoice | NoChoice, Field(discriminator="type")]

# --- thinking and form ------------------------------------------------------------------------------------------------


class ThinkingEnabled(WireModel):
    type: Literal["enabled"]
    budget_tokens: int = Field(ge=1, le=MAX_TOKENS)
    display: Literal["summarized"] | None = None


class ThinkingAdaptive(WireModel):
    type: Literal["adaptive"]
    display: Literal["summarized"] | None = None


class ThinkingDisabled(WireModel):
    type: Literal["disabled"]


Thinking = Annotated[ThinkingEnabled | ThinkingAdaptive | ThinkingDisabled, Field(discriminator="type")]


class OutputFormat(WireModel):
    type: Literal["json_schema"]
    schema_: JsonSchemaValue = Field(alias="schema")


class OutputConfig(WireModel):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


# --- the requests -----------------------------------------------------------------------------------------------------


class Metadata(WireModel):
    user_id: str | None = None


class CountTokensRequest(WireModel):
    """POST /v1/messages/count_tokens, and what POST /v1/messages asks as well."""

    arm_positions: ClassVar[Mapping[str, int]] = {"thinking": 1, "tool_choice": 1}

    model: str = Field(min_length=1, max_length=1024)
    messages: Messages
    system: Texts | None = None
    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None  # beyond Anthropic

    cache_control: CacheControl = None
    speed: Annotated[Any, Refused('only "standard" is supported', ("standard",))] = None
    user_profile_id: Annotated[Any, Refused("user profiles are not kept here")] = None
    workspace_id: Annotated[Any, Refused("workspaces are not kept here")] = None
    context_management: Annotated[Any, Refused("conversations are not compacted")] = None
    mcp_servers: Annotated[Any, Refused("servers of tools are not called from here", ([],))] = None

    def check_combinations(self) -> None:
        """Raises InvalidRequest for fields that contradict each other."""
        names = [tool.name for tool in self.tools or ()]
        check_unique(names)
        match self.tool_choice:
            case NamedChoice(name=name):
                check_offered("tool_choice.name", name, names)
            case AnyChoice() if not names:
                refuse("tool_choice", 'only allowed to be "any" when tools are given')
            case _:
                pass

    def chat_prompt(self) -> ChatPrompt:
        """An assistant's message at the end is the beginning of the answer. Raises InvalidRequest."""
        messages = as_messages(self.messages)
        if self.system is not None:
            messages.insert(0, {**system_message(self.system)})
        continues = messages[-1]["role"] == "assistant"
        if continues and "tool_calls" in messages[-1]:
            last = len(self.messages) - 1
            refuse(f"messages[{last}]", "a conversation that ends in tool_use blocks lacks their tool_result blocks")
        tools = [] if isinstance(self.tool_choice, NoChoice) else self.tools or []
        return ChatPrompt(
            messages=tuple(messages),
            tools=as_tools([Function(tool.name, tool.description, tool.input_schema, tool.strict) for tool in tools]),
            add_generation_prompt=not continues,
            continue_final_message=continues,
            template_kwargs={**self._switches(), **(self.chat_template_kwargs or {})},
        )

    def _switches(self) -> dict[str, Any]:
        """What templates know of thinking. Left to the template where the client says nothing."""
        switches: dict[str, Any] = {}
        if self.output_config is not None and self.output_config.effort is not None:
            switches["reasoning_effort"] = self.output_config.effort
        if self.thinking is not None:
            switches["enable_thinking"] = not isinstance(self.thinking, ThinkingDisabled)
        return switches

    def chosen(self) -> ToolChoice:
        match self.tool_choice:
            case NamedChoice(name=name, disable_parallel_tool_use=single):
                return ToolChoice("named", name, not single)
            case AnyChoice(disable_parallel_tool_use=single):
                return ToolChoice("required", parallel=not single)
            case AutoChoice(disable_parallel_tool_use=single):
                return ToolChoice(parallel=not single)
            case NoChoice():
                return ToolChoice("none")
            case _:
                return ToolChoice()

    def structured_output(self) -> StructuredOutput | None:
        form = self.output_config.format if self.output_config else None
        return None if form is None else StructuredOutput(JsonSchema(form.schema_), "output_config.format.schema")


class MessagesRequest(CountTokensRequest):
    """POST /v1/messages."""

    max_tokens: int = Field(ge=1, le=MAX_TOKENS)
    stream: bool | None = None
    stop_sequences: Annotated[list[StopString], Field(max_length=16, fail_fast=True)] | None = None
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=MAX_TOKEN_ID)
    watermark: WatermarkField | None = None  # beyond Anthropic

    metadata: Annotated[Metadata | None, NoEffect("identifies an end user to Anthropic's abuse monitoring.")] = None
    service_tier: Annotated[
        str | None, NoEffect("chooses among Anthropic's price classes; there is one class here.")
    ] = None
    inference_geo: Annotated[str | None, NoEffect("chooses among Anthropic's regions; answers are made here.")] = None

    container: Annotated[Any, Refused("containers are not supported")] = None
    diagnostics: Annotated[Any, Refused("diagnostics are not supported")] = None
    thread: Annotated[Any, Refused("conversations are not kept here; send them whole")] = None

    def check_combinations(self) -> None:
        super().check_combinations()
        if isinstance(self.thinking, ThinkingEnabled) and self.thinking.budget_tokens >= self.max_tokens:
            refuse("thinking.budget_tokens", f"must be less than max_tokens, which is {self.max_tokens}")

    @property
    def thinking_budget(self) -> int | None:
        return self.thinking.budget_tokens if isinstance(self.thinking, ThinkingEnabled) else None


# --- the answers ------------------------------------------------------------------------------------------------------

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class AnswerText(TypedDict):
    type: Literal["text"]
    text: str


class AnswerThinking(TypedDict):
    type: Literal["thinking"]
    thinking: str
    signature: str


class AnswerToolUse(TypedDict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


AnswerBlock = AnswerText | AnswerThinking | AnswerToolUse


class OutputTokensDetails(TypedDict):
    thinking_tokens: int


class MessageUsage(TypedDict):
    """`input_tokens` leaves out those that were found in the prefix cache."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens_details: NotRequired[OutputTokensDetails]


class MessageObject(TypedDict):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnswerBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class MessageEvent(TypedDict):
    """One event of a stream. Which fields stand beside the first, its type says."""

    type: str
    message: NotRequired[MessageObject]
    index: NotRequired[int]
    content_block: NotRequired[AnswerBlock]
    delta: NotRequired[dict[str, Any]]
    usage: NotRequired[MessageUsage]


class TokenCount(TypedDict):
    input_tokens: int
