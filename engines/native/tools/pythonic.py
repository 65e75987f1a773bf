"""Tool calls as a Python list of calls, `[f(a=1, b="x"), g()]`, as Llama 4 and Llama 3.2 may write them.

A call is given out when its closing parenthesis is there: keyword arguments become JSON values, which only a whole
argument can. Nothing is evaluated; literals are read.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from engines.native.tools.calls import Calls, Piece, call_id

MARKS = _OPENING, _CLOSING = "<|python_start|>", "<|python_end|>"
_WORDS = {"true": True, "false": False, "null": None}
_NAME = re.compile(r"[\s,]*([A-Za-z_][\w.-]*)\(")
_NAME_SO_FAR = re.compile(r"[\s,]*([A-Za-z_][\w.-]*)?")


class PythonicReader:
    """Satisfies `CallReader`. Only an answer that begins as a list of calls of `names` is one; else it is all text."""

    def __init__(self, names: frozenset[str]) -> None:
        self._calls = Calls(call_id)
        self._names = names
        self._buffer = ""  # what is not yet given out
        self._is_text = self._in_list = self._began = self._closes = False

    def push(self, text: str) -> list[Piece]:
        self._buffer += text
        while not self._is_text and self._advance():
            pass
        if self._is_text:
            self._calls.text(self._buffer)
            self._calls.end_text()
            self._buffer = ""
        return self._calls.take()

    def finish(self) -> list[Piece]:
        if not self._began or (self._closes and self._buffer.strip() != _CLOSING):
            self._calls.text(self._buffer)
        self._buffer = ""
        self._calls.end_text()
        return self._calls.take()

    def _advance(self) -> bool:
        if not self._in_list:
            return self._open()
        if self._closes:
            rest = self._buffer.lstrip()
            self._is_text = not _CLOSING.startswith(rest) or rest == _CLOSING
            if self._is_text:
                self._buffer = rest.removeprefix(_CLOSING)
            return False
        match = _NAME.match(self._buffer)
        if match is None:
            rest = self._buffer.lstrip(" \t\r\n,")
            if self._began and rest.startswith("]"):
                self._buffer, self._closes = rest[1:], True
                return True
            self._is_text = _NAME_SO_FAR.fullmatch(self._buffer) is None
            return False
        if match[1] not in self._names:
            self._is_text = True
            return False
        end = _end_of_call(self._buffer, match.end())
        if end < 0:
            return False
        arguments = _arguments(self._buffer[match.end() : end])
        if arguments is None:
            self._is_text = True
            return False
        self._calls.arguments(self._calls.begin(match[1]), arguments)
        self._buffer, self._began = self._buffer[end + 1 :], True
        return True

    def _open(self) -> bool:
        """The list's bracket; the buffer keeps what stands before it until there is a call."""
        stripped = self._buffer.lstrip()
        if stripped != _OPENING and _OPENING.startswith(stripped):
            return False
        stripped = stripped.removeprefix(_OPENING).lstrip()
        if not stripped:
            return False
        match = re.match(r"\[(?=[\s,]*[A-Za-z_])", stripped)
        if match is None:
            self._is_text = not re.fullmatch(r"\[\s*", stripped)
            return False
        name = _NAME.match(stripped, 1)
        if name is None:
            self._is_text = _NAME_SO_FAR.fullmatch(stripped, 1) is None
            return False
        if name[1] not in self._names or (
            (end := _end_of_call(stripped, name.end())) >= 0 and (_arguments(stripped[name.end() : end]) is None)
        ):
            self._is_text = True
            return False
        if end < 0:
            return False
        self._buffer, self._in_list = stripped[1:], True
        return True


def _end_of_call(text: str, start: int) -> int:
    """Where the parenthesis opened before `start` closes, -1 while it does not."""
    depth, quote, position = 1, "", start
    while position < len(text):
        char = text[position]
        if quote:
            if char == "\\":
                position += 1
            elif char == quote:
                quote = ""
        elif char in "\"'":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return -1


def _arguments(source: str) -> str | None:
    """Keyword arguments as a JSON object; None where they are anything else."""
    try:
        call = ast.parse(f"f({source})", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args:
            return None
        values = {keyword.arg: _literal(keyword.value) for keyword in call.keywords}
        return None if None in values else json.dumps(values, ensure_ascii=False)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _literal(node: ast.expr) -> Any:
    """Raises ValueError for what is no literal. JSON's own words count as literals."""
    match node:
        case ast.Name(id=word) if word in _WORDS:
            return _WORDS[word]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {str(ast.literal_eval(key)): _literal(value) for key, value in zip(keys, values, strict=True) if key}
        case _:
            value = ast.literal_eval(node)
            if isinstance(value, bytes | complex | set):
                raise ValueError
            return value
