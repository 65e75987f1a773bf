"""How this model's text is written and read: its tool calls, its reasoning, and the prompt that teaches tools.

Owns what is decided from the chat template once, and what is decided for each request from its tools, its form and its
prompt. The parts are in tools/, thinking.py and grammar/. Knows no sockets and no token streams.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engines.api import ChatPrompt, GenerationRequest
from engines.errors import InvalidRequest
from engines.native.answer_text import AnswerText
from engines.native.chat_template import TemplateError, uses_tools
from engines.native.grammar.spec import grammar_spec
from engines.native.thinking import TAGS, Start, ThinkingReader, ThinkingTags, find_tags
from engines.native.tokenizer import Tokenizer
from engines.native.tools.formats import FORMATS, ToolFormat, find_format
from engines.native.tools.grammar import format_of_choice, tool_grammar
from engines.native.tools.prompt import with_tools_as_text
from engines.native.types import GrammarSpec, ThinkingSpec

_TEMPLATE_PARAMETERS = {"messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template"}


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """What binds one request's answers, and how they are read."""

    grammar: GrammarSpec | None = None
    thinking: ThinkingSpec | None = None
    tags: ThinkingTags | None = None
    start: Start = "answer"
    calls: ToolFormat | None = None
    tool_names: frozenset[str] = frozenset()
    single_call: bool = False
    only_calls: bool = False
    shows_special: bool = False  # marks that must be read are special tokens

    def reader(self) -> AnswerText | None:
        """A new one for each choice; None where all text is answer."""
        if self.tags is None and self.calls is None:
            return None
        thinking = None if self.tags is None else ThinkingReader(self.tags, self.start)
        calls = None if self.calls is None else self.calls.reader(self.tool_names)
        return AnswerText(thinking, calls, single_call=self.single_call, only_calls=self.only_calls)


class Dialect:
    """`tool_parser` and `reasoning_parser` are the settings of these names."""

    def __init__(self, tokenizer: Tokenizer, tool_parser: str = "auto", reasoning_parser: str = "auto") -> None:
        self._tokenizer = tokenizer
        self._parsers = tool_parser, reasoning_parser
        plain, with_tools = (tokenizer.template_source(with_tools=with_tools) for with_tools in (False, True))
        self._knows_tools = uses_tools(with_tools)
        found = find_format(with_tools, knows_tools=self._knows_tools)
        self._format = found if tool_parser == "auto" else FORMATS[tool_parser]
        self._tags = {"auto": find_tags(plain), "think": TAGS[0], "none": None}[reasoning_parser]

    def under(self, template: str) -> Dialect:
        """With the client's own chat template. Raises InvalidRequest for one that isn't valid."""
        try:
            return Dialect(self._tokenizer.with_template(template), *self._parsers)
        except TemplateError as error:
            raise InvalidRequest(f"chat_template: {error}", field="chat_template") from error

    def render(self, prompt: ChatPrompt) -> str:
        """The prompt's text. Raises InvalidRequest where the template refuses the conversation."""
        if taken := _TEMPLATE_PARAMETERS & prompt.template_kwargs.keys():
            field = f"chat_template_kwargs.{min(taken)}"
            raise InvalidRequest(f"{field}: that is a field of its own.", field=field)
        messages, tools = prompt.messages, prompt.tools
        if not self._knows_tools:
            messages, tools = with_tools_as_text(messages, tools), None
        try:
            return self._tokenizer.apply_chat_template(
                messages,
                tools=tools,
                add_generation_prompt=prompt.add_generation_prompt,
                continue_final_message=prompt.continue_final_message,
                **prompt.template_kwargs,
            )
        except TemplateError as error:
            raise InvalidRequest(f"messages: {error}", field="messages") from error

    def plan(self, request: GenerationRequest, prompt_text: str) -> AnswerPlan:
        """Raises InvalidRequest for a form that cannot be combined with tools."""
        output = request.structured_output
        plan = AnswerPlan(None if output is None else grammar_spec(output))
        if not isinstance(request.prompt, ChatPrompt):
            return plan
        tools, choice = request.prompt.tools or (), request.tool_choice
        if tools:
            tool_format = format_of_choice(self._format, choice)
            plan = replace(
                plan,
                grammar=tool_grammar(tools, choice, tool_format, self._special_token, output),
                calls=tool_format,
                tool_names=frozenset(tool["function"]["name"] for tool in tools),
                single_call=not choice.parallel or choice.mode == "named",
                only_calls=choice.mode in ("required", "named"),
                shows_special=any(self._special_token(mark) is not None for mark in tool_format.marks),
            )
        return self._plan_thinking(plan, request, prompt_text)

    def _plan_thinking(self, plan: AnswerPlan, request: GenerationRequest, prompt_text: str) -> AnswerPlan:
        tags = self._tags
        if tags is None:
            return plan
        start = tags.start_of(prompt_text)
        spec = None
        if start != "answer" and (plan.grammar is not None or request.thinking_budget is not None):
            budget = -1 if request.thinking_budget is None else request.thinking_budget
            spec = ThinkingSpec(tags.opening, tags.closing, start == "inside", budget)
        special = any(self._special_token(tag) is not None for tag in (tags.opening, tags.closing))
        return replace(plan, thinking=spec, tags=tags, start=start, shows_special=plan.shows_special or special)

    def _special_token(self, mark: str) -> int | None:
        token_id = self._tokenizer.token_id(mark)
        return token_id if token_id in self._tokenizer.special_ids else None
