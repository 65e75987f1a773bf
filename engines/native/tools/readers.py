"""Readers of the ways in which models write tool calls: one class for calls between marks, one for calls that are all.

marked   text <tool_call>{"name": ..., "arguments": ...}</tool_call>     hermes, Qwen; Mistral's array
whole    {"name": ..., "parameters": ...}; {...}                         Llama 3, plain JSON
"""

from __future__ import annotations

from engines.native.tools.calls import Calls, NewId, Piece, call_id, held_back
from engines.native.tools.json_calls import JsonCalls


class MarkedReader:
    """Calls after `opening`, up to `closing` where there is one, as often as the model likes.

    A stretch after `opening` that is no call is text, the mark included.
    """

    def __init__(self, opening: str, closing: str = "", *, new_id: NewId = call_id) -> None:
        self._opening, self._closing = opening, closing
        self._calls = Calls(new_id)
        self._buffer = ""
        self._body: JsonCalls | None = None
        self._raw = ""  # of the stretch being read, for as long as it may turn out to be text
        self._awaits_closing = False

    def push(self, text: str) -> list[Piece]:
        self._buffer += text
        while self._advance():
            pass
        return self._calls.take()

    def finish(self) -> list[Piece]:
        if self._body is not None and not self._body.began:
            self._calls.text(self._raw)
        if not self._awaits_closing or (self._buffer and not self._closing.startswith(self._buffer.lstrip())):
            self._calls.text(self._buffer)
        self._buffer, self._body = "", None
        self._calls.end_text()
        return self._calls.take()

    def _advance(self) -> bool:
        """One stretch of the buffer; False when more text is needed."""
        if self._body is not None:
            return self._read_body(self._body)
        if self._awaits_closing:
            return self._read_closing()
        start = self._buffer.find(self._opening)
        if start >= 0:
            self._calls.text(self._buffer[:start])
            self._buffer = self._buffer[start + len(self._opening) :]
            self._body, self._raw = JsonCalls(self._calls), self._opening
            return True
        sure = len(self._buffer) - held_back(self._buffer, self._opening)
        self._calls.text(self._buffer[:sure])
        self._buffer = self._buffer[sure:]
        return False

    def _read_body(self, body: JsonCalls) -> bool:
        end = body.push(self._buffer)
        if not body.began:
            self._raw += self._buffer[:end]
        self._buffer = self._buffer[end:]
        if body.state == "open":
            return False
        self._body = None
        if not body.began:
            self._calls.text(self._raw)
        self._awaits_closing = body.began
        return True

    def _read_closing(self) -> bool:
        """Blanks and the closing mark vanish; a model that leaves the mark out is forgiven."""
        rest = self._buffer.lstrip()
        if not rest or (rest != self._closing and self._closing.startswith(rest)):
            return False
        self._awaits_closing = False
        self._buffer = rest.removeprefix(self._closing) if self._closing else rest
        return True


class WholeReader:
    """An answer that is nothing but calls, after one of `openings` if the model likes; anything else is all text.

    Only calls of `names` count, for plain JSON may as well be the answer.
    """

    def __init__(self, names: frozenset[str], openings: tuple[str, ...] = (), *, new_id: NewId = call_id) -> None:
        self._calls = Calls(new_id)
        self._openings = openings
        self._body = JsonCalls(self._calls, names)
        self._raw = ""
        self._at_start = True
        self._is_text = False

    def push(self, text: str) -> list[Piece]:
        if self._is_text:
            self._calls.text(text)
            self._calls.end_text()
            return self._calls.take()
        if self._at_start:
            return self._start(self._raw + text)
        return self._read(text)

    def finish(self) -> list[Piece]:
        if not self._is_text and not self._body.began:
            self._calls.text(self._raw)
            self._raw = ""
        self._calls.end_text()
        return self._calls.take()

    def _start(self, text: str) -> list[Piece]:
        self._raw = text
        stripped = text.lstrip()
        if not stripped or any(mark != stripped and mark.startswith(stripped) for mark in self._openings):
            return []
        self._at_start = False
        mark = next((mark for mark in self._openings if stripped.startswith(mark)), "")
        opened = len(text) - len(stripped) + len(mark)
        self._raw = text[:opened]
        return self._read(text[opened:])

    def _read(self, text: str) -> list[Piece]:
        end = self._body.push(text)
        if not self._body.began:
            self._raw += text[:end]
        if self._body.state != "open":
            self._is_text = True
            if not self._body.began:
                self._calls.text(self._raw)
            self._calls.text(text[end:])
            self._calls.end_text()
        return self._calls.take()
