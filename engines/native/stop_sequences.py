"""Stop sequences in streamed text: found wherever they fall, cut exactly, never shown in part.

Owns the search and what is held back. Knows characters only: tokens, min_tokens and how many stop strings a request
may have are the caller's concern.

Which match wins depends on the text alone, never on how it is cut into pushes: the match that completes first, and of
those that complete at the same character the one that starts first (the longest). So with stops "abcd" and "bc" the
text "abcd" ends as "a".

Each stop string has its own Knuth-Morris-Pratt automaton (Knuth, Morris and Pratt 1977): one integer of state, which
is the length of the longest suffix of the text so far that is a proper prefix of the stop string. The largest of those
is exactly what must be held back. The search is linear in the text for stop strings of any length; where no match is
under way it is `str.find` of one character.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence


class StopMatcher:
    """Cuts one choice's text at its first stop sequence.

    `emitted_chars` counts the characters released by all calls so far, so that a caller can trim token ids and
    logprobs to the text that is kept. `matched` is the winning stop string once there is one; pushes after that emit
    nothing.
    """

    __slots__ = ("_first_chars", "_held", "_include", "_stops", "emitted_chars", "matched")

    def __init__(self, stops: Sequence[str], include_in_output: bool = False) -> None:
        """Raises ValueError for an empty stop string, which would match everywhere."""
        if not all(stops):
            raise ValueError("stop: a stop sequence must not be empty")
        self._stops = [_Stop(stop) for stop in dict.fromkeys(stops)]
        self._first_chars = frozenset(stop[0] for stop in stops)
        self._include = include_in_output
        self._held = ""  # the end of the text, a proper prefix of a stop string
        self.emitted_chars = 0
        self.matched: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """Take the next piece of text, of any length.

        Returns what can be shown now, and the stop string that ended the text if one did.
        """
        if not self._held and self.matched is None and self._first_chars.isdisjoint(text):
            self.emitted_chars += len(text)
            return text, None
        if self.matched is not None:
            return "", self.matched
        winner = self._search(text)
        window = self._held + text
        if winner is None:
            shown = len(window) - max(stop.state for stop in self._stops)
        else:
            self.matched, end = winner
            shown = len(self._held) + end - (0 if self._include else len(self.matched))
        self._held = window[shown:] if winner is None else ""
        self.emitted_chars += shown
        return window[:shown], self.matched

    def flush(self) -> str:
        """The text has ended: release what was held back, "" after a match."""
        rest, self._held = self._held, ""
        for stop in self._stops:
            stop.state = 0
        self.emitted_chars += len(rest)
        return rest

    def _search(self, text: str) -> tuple[str, int] | None:
        """Advance all automata over `text`; the winning stop string and where in `text` it ends."""
        winner: str | None = None
        limit = len(text)
        for stop in self._stops:
            if not stop.state and stop.first not in text:
                continue
            end = stop.advance(text, limit)
            # A later stop is searched up to the earliest end found so far, so reaching it is a tie at worst.
            if end is not None and (winner is None or end < limit or len(stop.text) > len(winner)):
                winner, limit = stop.text, end
        return None if winner is None else (winner, limit)


class _Stop:
    """One stop string's automaton. `state` characters of it are the end of the text so far."""

    __slots__ = ("_borders", "first", "state", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.first = text[0]
        self.state = 0
        # [i]: length of the longest proper prefix of text[:i + 1] that is also its suffix. Known as far as a match has
        # ever got, so that a client's very long stop string costs nothing until it begins to match.
        self._borders = array("I", [0])

    def advance(self, text: str, limit: int) -> int | None:
        """Read text[:limit]; the index just after the first match, or None."""
        pattern, borders = self.text, self._borders
        state, size, position = self.state, len(pattern), 0
        while position < limit:
            if state == 0:
                position = text.find(self.first, position, limit)
                if position < 0:
                    break
            char = text[position]
            position += 1
            while state and pattern[state] != char:
                state = borders[state - 1]
            if pattern[state] == char:
                state += 1
                if state == size:
                    self.state = 0
                    return position
                if state > len(borders):
                    self._add_border()
        self.state = state
        return None

    def _add_border(self) -> None:
        pattern, borders = self.text, self._borders
        char, length = pattern[len(borders)], borders[-1]
        while length and pattern[length] != char:
            length = borders[length - 1]
        borders.append(length + 1 if pattern[length] == char else 0)
