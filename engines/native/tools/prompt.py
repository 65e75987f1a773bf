"""Tools for models whose chat template knows none: described in the system prompt, calls and results as text.

The words are those of Hermes' format, which most instruction-tuned models have met: a list of tools in <tools>, calls
in <tool_call>, results in <tool_response> from the user.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

Message = Mapping[str, Any]

_SYSTEM = """You can call these tools:

<tools>
{tools}
</tools>

To call a tool, answer with its name and arguments as JSON, like this:

<tool_call>
{{"name": "tool-name", "arguments": {{"argument-name": "value"}}}}
</tool_call>

Call a tool only if it helps; otherwise answer in words."""


def with_tools_as_text(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> list[Message]:
    """The conversation in messages that any template knows: no tools, no calls, no results of them."""
    told: list[Message] = []
    for message in messages:
        if message["role"] == "tool":
            _add_result(told, message)
        elif message.get("tool_calls"):
            told.append(_with_calls_as_text(message))
        else:
            told.append(message)
    return _with_system(told, tools) if tools else told


def _with_system(messages: list[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    listed = "\n".join(json.dumps(_description(tool), ensure_ascii=False) for tool in tools)
    text = _SYSTEM.format(tools=listed)
    first = messages[0]
    if first["role"] in ("system", "developer"):
        return [{**first, "content": f"{_text(first)}\n\n{text}".lstrip()}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _description(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = cast("Mapping[str, Any]", tool["function"])
    return {name: function[name] for name in ("name", "description", "parameters") if function.get(name) is not None}


def _with_calls_as_text(message: Message) -> Message:
    calls = cast("Sequence[Mapping[str, Any]]", message["tool_calls"])
    written = [
        f'<tool_call>\n{{"name": {json.dumps(call["function"]["name"])}, '
        f'"arguments": {call["function"]["arguments"] or "{}"}}}\n</tool_call>'
        for call in calls
    ]
    content = "\n".join([*filter(None, [_text(message)]), *written])
    return {**{key: value for key, value in message.items() if key != "tool_calls"}, "content": content}


def _add_result(told: list[Message], message: Message) -> None:
    """Results that follow each other are one message of the user, for templates insist on turns."""
    text = f"<tool_response>\n{_text(message)}\n</tool_response>"
    if told and told[-1].get("role") == "user" and str(told[-1].get("content", "")).endswith("</tool_response>"):
        told[-1] = {"role": "user", "content": f"{told[-1]['content']}\n{text}"}
    else:
        told.append({"role": "user", "content": text})


def _text(message: Message) -> str:
    content: Any = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(str(part.get("text", "")) for part in cast("Sequence[Mapping[str, Any]]", content))
