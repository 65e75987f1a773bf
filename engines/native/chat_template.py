"""Chat templates: a conversation in OpenAI's shape to the prompt text that a model was trained on.

A template is Jinja as Hugging Face defines it for models: block trimming, loop controls, `{% generation %}`,
`raise_exception`, `strftime_now`, and a `tojson` that escapes nothing. It comes from the model's files or from the
operator, and runs in Jinja's immutable sandbox. A client's text is only ever data, so what a template does is bounded
by the size of the request; except where the operator trusts clients with templates of their own, which may loop on.

Owns the small repairs between the wire's messages and what templates expect:

- `content` as a list of text parts stays a list where the template walks over parts, and is joined with newlines where
  it expects a string. Which of the two is read off the template's syntax tree.
- A template that knows only parts gets string contents as one part.
- Content that is None or absent becomes "", unless the template asks whether it `is none` or `is defined`.
- Tool call arguments, JSON text on the wire, become the object that templates print with `tojson`.
- Reasoning given as `reasoning_content`, `reasoning` or `thinking` is found under the first and the last name.

Knows nothing of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, cast

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = Mapping[str, Any]

# Marks the end of the final message while it is rendered, in characters of Unicode's private use area. The space after
# it tells, by being there or not, whether the template trims content.
_END_MARK, _SPACE = "\ue000end of final message\ue001", " "


class TemplateError(ValueError):
    """The conversation can't be rendered with this template; the message is fit for the client."""


class ChatTemplate:
    """One compiled template. May be rendered from several threads at once."""

    def __init__(self, source: str) -> None:
        """Raises TemplateError for a source that isn't valid Jinja."""
        environment = _environment()
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template is not valid: {error}") from error
        uses = _content_uses(tree)
        self.content_format: Literal["parts", "string"] = "parts" if "for" in uses else "string"
        self._content_uses = uses

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text.

        With `continue_final_message` it ends inside the last message, just after its content, for the model to go on.
        `variables` are further names for the template, such as `bos_token`. Raises TemplateError where the template
        refuses the conversation or fails on it.
        """
        if not messages:
            raise TemplateError("messages must hold at least one message")
        if continue_final_message and add_generation_prompt:
            raise TemplateError("continue_final_message and add_generation_prompt exclude each other")
        prepared = [self._prepare(message) for message in messages]
        final_text = _mark_end(prepared[-1]) if continue_final_message else ""
        try:
            text = self._template.render(
                {"documents": None, **(variables or {})},
                messages=prepared,
                tools=list(tools) if tools else None,
                add_generation_prompt=add_generation_prompt,
            )
        except jinja2.TemplateError as error:
            raise TemplateError(f"the model's chat template refuses this conversation: {error}") from error
        except Exception as error:  # a template is foreign code, and any Python error can come out of it
            raise TemplateError(f"the model's chat template fails on this conversation: {error}") from error
        return _cut_at_end_mark(text, final_text) if continue_final_message else text

    def _prepare(self, message: Message) -> dict[str, Any]:
        prepared = {key: value for key, value in message.items() if value is not None}
        self._set_content(prepared)
        for name in ("reasoning_content", "thinking", "reasoning"):
            if name in prepared:
                prepared = {"thinking": prepared[name], **prepared, "reasoning_content": prepared[name]}
                break
        if "tool_calls" in prepared:
            prepared["tool_calls"] = [_with_parsed_arguments(call) for call in prepared["tool_calls"]]
        return prepared

    def _set_content(self, message: dict[str, Any]) -> None:
        content: object = message.get("content")
        if content is None:
            if "none" in self._content_uses:
                message["content"] = None
            elif not self._content_uses & {"defined", "undefined"}:
                message["content"] = ""
            return
        if isinstance(content, str):
            if self.content_format == "parts" and "string" not in self._content_uses:
                message["content"] = [{"type": "text", "text": content}]
            return
        texts = [_part_text(part) for part in cast(Sequence[Mapping[str, Any]], content)]
        if self.content_format == "parts":
            message["content"] = [{"type": "text", "text": text} for text in texts]
        else:
            message["content"] = "\n".join(texts)


@lru_cache(maxsize=64)
def compiled_template(source: str) -> ChatTemplate:
    """The template of this source, compiled once. Sources come from files, so there are few."""
    return ChatTemplate(source)


def uses_tools(source: str) -> bool:
    """Whether a template shows the model its tools. False for a source that isn't valid Jinja."""
    try:
        return "tools" in meta.find_undeclared_variables(_environment().parse(source))
    except jinja2.TemplateError:
        return False


# --- messages ---------------------------------------------------------------------------------------------------------


def _part_text(part: Mapping[str, Any]) -> str:
    kind: object = part.get("type")
    text: object = part.get("refusal" if kind == "refusal" else "text")
    if kind not in ("text", "refusal") or not isinstance(text, str):
        raise TemplateError(f"content parts of type {kind!r} are not supported by this model, which reads text only")
    return text


def _with_parsed_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function: object = call.get("function")
    if not isinstance(function, Mapping):
        return dict(call)
    function = cast(Mapping[str, object], function)
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return dict(call)
    try:
        parsed: object = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        parsed = arguments  # what a model wrote need not be JSON; the template gets it as it is
    return {**call, "function": {**function, "arguments": parsed if isinstance(parsed, dict) else arguments}}


def _mark_end(message: dict[str, Any]) -> str:
    """Put the end mark behind the message's content; returns the text that it ends."""
    content: object = message.get("content")
    if isinstance(content, str):
        message["content"] = content + _END_MARK + _SPACE
        return content
    if isinstance(content, list) and content:
        last = cast(list[dict[str, str]], content)[-1]
        text, last["text"] = last["text"], last["text"] + _END_MARK + _SPACE
        return text
    raise TemplateError("continue_final_message needs a final message with text content")


def _cut_at_end_mark(rendered: str, final_text: str) -> str:
    end = rendered.rfind(_END_MARK)
    if end < 0 or final_text.strip() not in rendered:
        raise TemplateError(
            "continue_final_message: the model's chat template does not show the final message as it is, "
            "so it can't be continued"
        )
    kept = rendered[:end]
    trimmed = not rendered.startswith(_SPACE, end + len(_END_MARK))
    return kept.rstrip() if trimmed else kept


# --- the language -----------------------------------------------------------------------------------------------------


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks an assistant's words for training; here it is just its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson  # pyright: ignore[reportUnknownMemberType]
    names = cast(dict[str, Any], environment.globals)  # pyright: ignore[reportUnknownMemberType]
    names["raise_exception"] = _raise_exception
    names["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes HTML, which models were not trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _content_uses(tree: nodes.Template) -> frozenset[str]:
    """How the template looks at contents: "for" where it walks over one, and the name of each `is` test on one.

    A content is an expression that ends in `.content` or `['content']`, a variable that such an expression was
    assigned to, and any variable called `content`, which is how macros name their parameter.
    """
    names = {"content"}
    while True:
        assigned = {
            node.target.name
            for node in tree.find_all(nodes.Assign)
            if isinstance(node.target, nodes.Name) and _is_content(node.node, names)
        }
        if assigned <= names:
            break
        names |= assigned
    uses = {test.name for test in tree.find_all(nodes.Test) if _is_content(test.node, names)}
    if any(_is_content(loop.iter, names) for loop in tree.find_all(nodes.For)):
        uses.add("for")
    return frozenset(uses)


def _is_content(node: nodes.Node | None, names: set[str]) -> bool:
    match node:
        case nodes.Name():
            return node.name in names
        case nodes.Getattr():
            return node.attr == "content"
        case nodes.Getitem():
            return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
        case nodes.Filter():
            return _is_content(node.node, names)
        case nodes.Or():
            return _is_content(node.left, names) or _is_content(node.right, names)
        case nodes.CondExpr():
            return _is_content(node.expr1, names) or _is_content(node.expr2, names)
        case _:
            return False
