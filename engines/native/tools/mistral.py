"""Mistral's tool calls: `[TOOL_CALLS][{"name": ..., "arguments": ...}]`, and since 2025
`[TOOL_CALLS]name[CALL_ID]id[ARGS]{...}`, with a mark before each call."""

from __future__ import annotations

from engines.native.tools.calls import Calls, Piece, held_back, short_call_id
from engines.native.tools.json_calls import JsonCalls, JsonValue

OPENING, CALL_ID, ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
MARKS = (OPENING, CALL_ID, ARGUMENTS)


class MistralReader:
    """Satisfies `CallReader`. What follows a mark and is no call is text, the mark included."""

    def __init__(self) -> None:
        self._calls = Calls(short_call_id)
        self._buffer = ""
        self._raw = ""
        self._step = self._read_text
        self._body = JsonCalls(self._calls)
        self._value = JsonValue()
        self._index = -1

    def push(self, text: str) -> list[Piece]:
        self._buffer += text
        while self._step():
            pass
        return self._calls.take()

    def finish(self) -> list[Piece]:
        if self._step in (self._read_text, self._read_head) or (
            self._step == self._read_array and not self._body.began
        ):
            self._calls.text(self._raw + self._buffer)
        self._back_to_text()
        self._buffer = ""
        self._calls.end_text()
        return self._calls.take()

    def _back_to_text(self) -> None:
        self._raw, self._step = "", self._read_text

    # --- what may come next: each says whether to go on with the buffer ----------------------------------------------

    def _read_text(self) -> bool:
        start = self._buffer.find(OPENING)
        if start >= 0:
            self._calls.text(self._buffer[:start])
            self._buffer, self._raw = self._buffer[start + len(OPENING) :], OPENING
            self._step = self._read_head
            return True
        sure = len(self._buffer) - held_back(self._buffer, OPENING)
        self._calls.text(self._buffer[:sure])
        self._buffer = self._buffer[sure:]
        return False

    def _read_head(self) -> bool:
        """An array or object of calls, or a name up to its arguments."""
        head = self._buffer.lstrip()
        if not head:
            return False
        if head[0] in "[{":
            self._body = JsonCalls(self._calls)
            self._step = self._read_array
            return True
        end = self._buffer.find("{")
        if end < 0:
            return False
        name = self._buffer[:end].removesuffix(ARGUMENTS).partition(CALL_ID)[0].strip()
        if not name or any(char.isspace() for char in name):
            self._calls.text(self._raw)
            self._back_to_text()
            return True
        self._index = self._calls.begin(name)
        self._value = JsonValue()
        self._buffer = self._buffer[end:]
        self._step = self._read_arguments
        return True

    def _read_array(self) -> bool:
        end = self._body.push(self._buffer)
        self._raw += self._buffer[:end]
        self._buffer = self._buffer[end:]
        if self._body.state == "open":
            return False
        if not self._body.began:
            self._calls.text(self._raw)
        self._back_to_text()
        return True

    def _read_arguments(self) -> bool:
        end = self._value.read(self._buffer)
        self._calls.arguments(self._index, self._buffer[:end])
        self._buffer = self._buffer[end:]
        if not self._value.ended:
            return False
        self._back_to_text()
        return True
