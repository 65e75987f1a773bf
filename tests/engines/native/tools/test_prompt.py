"""Tools for templates that know none: told in the system prompt, calls and results as text."""

from __future__ import annotations

from typing import Any

from engines.native.tools.calls import Piece
from engines.native.tools.formats import HERMES
from engines.native.tools.prompt import with_tools_as_text

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}, "strict": True},
}
USER = {"role": "user", "content": "One and two?"}


def call(arguments: str, **message: Any) -> dict[str, Any]:
    function = {"name": "add", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": function}], **message}


def test_tools_are_described_before_the_conversation():
    system, user = with_tools_as_text([USER], [TOOL])
    assert user == USER
    assert system["role"] == "system"
    assert '{"name": "add", "description": "Adds.", "parameters": {"type": "object"}}' in system["content"]
    assert "strict" not in system["content"]


def test_a_system_prompt_stays_in_front():
    system, _ = with_tools_as_text([{"role": "system", "content": "Be terse."}, USER], [TOOL])
    assert system["content"].startswith("Be terse.\n\n")
    parts = [{"type": "text", "text": "Be"}, {"type": "text", "text": "terse."}]
    system, _ = with_tools_as_text([{"role": "developer", "content": parts}, USER], [TOOL])
    assert (system["role"], system["content"][:11]) == ("developer", "Be\nterse.\n\n")


def test_without_tools_nothing_is_added():
    assert with_tools_as_text([USER], None) == [USER]


def test_calls_are_written_as_they_are_read_back():
    _, assistant = with_tools_as_text([USER, call('{"a": 1}', content="Let me see.")], None)
    assert "tool_calls" not in assistant
    reader = HERMES.reader(frozenset({"add"}))
    pieces: list[Piece] = [*reader.push(assistant["content"]), *reader.finish()]
    assert pieces[0] == "Let me see."
    calls = [piece for piece in pieces if not isinstance(piece, str)]
    assert calls[0].name == "add"
    assert "".join(piece.arguments for piece in calls) == '{"a": 1}'


def test_results_in_a_row_are_one_message_of_the_user():
    results = [{"role": "tool", "tool_call_id": "c", "content": text} for text in ("3", "4")]
    *_, told, last = with_tools_as_text([USER, call("", content=None), *results, USER], None)
    expected = "<tool_response>\n3\n</tool_response>\n<tool_response>\n4\n</tool_response>"
    assert told == {"role": "user", "content": expected}
    assert last == USER
