"""What a reader of tool calls gives out, and the small tools that all readers share. Knows no format."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable
from typing import Protocol

from engines.api import ToolCallDelta

Piece = str | ToolCallDelta
"""A piece of the answer's text, or of one of its tool calls, in the order of the answer."""

NewId = Callable[[], str]


class CallReader(Protocol):
    """Splits one answer's text into text and tool calls, however the text is cut into pushes.

    The text pieces and the joined arguments of each call are the same for every way of cutting.
    """

    def push(self, text: str) -> list[Piece]:
        """What this text makes certain."""
        ...

    def finish(self) -> list[Piece]:
        """The answer has ended: what was held back."""
        ...


class Calls:
    """Numbers an answer's calls and collects its pieces. Blanks between text and a call belong to neither."""

    def __init__(self, new_id: NewId) -> None:
        self._new_id = new_id
        self._count = 0
        self._pieces: list[Piece] = []
        self._blanks = ""  # at the end of the text so far; a call would swallow them
        self._after_call = False  # and no text since

    def text(self, text: str) -> None:
        text = self._blanks + text
        if self._after_call:
            text = text.lstrip()
        kept = text.rstrip()
        self._blanks = text[len(kept) :]
        if kept:
            self._after_call = False
            self._pieces.append(kept)

    def end_text(self) -> None:
        """No call follows any more."""
        if self._blanks and not self._after_call:
            self._pieces.append(self._blanks)
        self._blanks = ""

    def begin(self, name: str) -> int:
        """The new call's index."""
        index = self._count
        self._count += 1
        self._blanks, self._after_call = "", True
        self._pieces.append(ToolCallDelta(index, "", self._new_id(), name))
        return index

    def arguments(self, index: int, text: str) -> None:
        if text:
            self._pieces.append(ToolCallDelta(index, text))

    def take(self) -> list[Piece]:
        taken, self._pieces = self._pieces, []
        return taken


def call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def short_call_id() -> str:
    """Nine letters and digits, which is what Mistral's templates insist on."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


def held_back(text: str, *marks: str) -> int:
    """How many characters at the end of `text` may be the beginning of one of `marks`."""
    longest = max(map(len, marks)) - 1
    for count in range(min(longest, len(text)), 0, -1):
        tail = text[len(text) - count :]
        if any(mark.startswith(tail) for mark in marks):
            return count
    return 0
