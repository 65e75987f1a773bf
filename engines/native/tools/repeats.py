"""Calls that an answer has made already, and would make again until its tokens are spent. Knows no format.

A small model that must call tools does not know when to stop: it writes the same call again. Such an answer ends at the
first repetition, which is not told.
"""

from __future__ import annotations

from engines.api import ToolCallDelta


class Repeats:
    """Passes on the pieces of an answer's calls, in order, up to the first call that repeats an earlier one.

    A call repeats another when its name and its arguments are the same to the letter. Pieces are held back for as long
    as they may become a repetition, which is while the arguments are the beginning of an earlier call's.
    """

    def __init__(self) -> None:
        self.found = False  # a repetition: nothing is passed on any more
        self._told: dict[str, list[str]] = {}  # arguments of the calls before, by name
        self._name = self._arguments = ""
        self._held: list[ToolCallDelta] = []

    def push(self, piece: ToolCallDelta) -> list[ToolCallDelta]:
        """What is certain to be no repetition; nothing after one was found."""
        if self.found:
            return []
        passed: list[ToolCallDelta] = []
        if piece.name is not None:
            passed, self._held = self._held, []  # the call before ended short of all that it might have repeated
            if self._name:
                self._told.setdefault(self._name, []).append(self._arguments)
            self._name, self._arguments = piece.name, ""
        self._arguments += piece.arguments
        self._held.append(piece)
        before = self._told.get(self._name, ())
        self.found = self._arguments in before  # arguments are JSON objects: none is the beginning of another
        if not any(arguments.startswith(self._arguments) for arguments in before):
            passed, self._held = passed + self._held, []
        return passed
