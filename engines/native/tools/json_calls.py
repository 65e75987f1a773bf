"""Calls written as JSON objects, `{"name": ..., "arguments": {...}}`, read character by character.

The arguments are passed on as the model wrote them, while it writes them; nothing waits for the object to end.
Arguments that come before the name wait for it, and arguments written as a JSON string that holds JSON are unwrapped.
Whether the arguments are valid JSON is not looked at: only strings and brackets are followed.
"""

from __future__ import annotations

import json
from typing import Literal

from engines.native.tools.calls import Calls

_SPACE = " \t\r\n"
_ARGUMENT_KEYS = ("arguments", "parameters")
State = Literal["open", "done", "broken"]


class JsonValue:
    """Follows one JSON value to its end."""

    __slots__ = ("_depth", "_escaped", "_in_string", "_started", "ended", "is_scalar")

    def __init__(self) -> None:
        self.ended = False  # as `read` found it
        self._depth = 0
        self._in_string = self._escaped = self._started = False
        self.is_scalar = False

    def take(self, char: str) -> bool:
        """Whether the value ends with `char`. A scalar ends before the `,`, `}`, `]` or blank that follows it."""
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._in_string = False
                return self._depth == 0
            return False
        if char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            return self._depth == 0
        elif not self._started:
            self.is_scalar = True
        self._started = True
        return False

    def read(self, text: str) -> int:
        """An object's or array's characters from the start of `text`; the index after the last of them."""
        for position, char in enumerate(text):
            if self.take(char):
                self.ended = True
                return position + 1
        return len(text)


class JsonCall:
    """One call object. `state` is "broken" where the text is no such object; a call that has begun stays begun.

    `names`: the tools that exist; an object that names another is no call. None: any name will do.
    """

    def __init__(self, calls: Calls, names: frozenset[str] | None) -> None:
        self.state: State = "open"
        self.index = -1  # of the call, once its name is known
        self._calls = calls
        self._names = names
        self._step = self._before
        self._key = ""
        self._raw: list[str] = []  # of the string or value being read
        self._waiting = ""  # arguments that came before the name
        self._fragment: list[str] = []  # arguments of this push
        self._has_arguments = False
        self._value = JsonValue()

    def push(self, text: str, start: int) -> int:
        """Reads text[start:] up to the object's end; the index after what was read."""
        position = start
        while position < len(text) and self.state == "open":
            self._step(text[position])
            position += not self._is_broken
        self._flush()
        return position

    @property
    def _is_broken(self) -> bool:
        return self.state == "broken"

    def _flush(self) -> None:
        if self._fragment and self.index >= 0:
            self._calls.arguments(self.index, "".join(self._fragment))
            self._fragment.clear()

    # --- states: each is given one character --------------------------------------------------------------------------

    def _before(self, char: str) -> None:
        if char == "{":
            self._step = self._before_key
        elif char not in _SPACE:
            self.state = "broken"

    def _before_key(self, char: str) -> None:
        if char == '"':
            self._value, self._raw = JsonValue(), [char]
            self._value.take(char)
            self._step = self._in_key
        elif char == "}":
            self._end()
        elif char not in _SPACE and char != ",":
            self.state = "broken"

    def _in_key(self, char: str) -> None:
        self._raw.append(char)
        if self._value.take(char):
            self._key = _string("".join(self._raw)) or ""
            self._step = self._after_key

    def _after_key(self, char: str) -> None:
        if char == ":":
            self._step = self._before_value
        elif char not in _SPACE:
            self.state = "broken"

    def _before_value(self, char: str) -> None:
        if char in _SPACE:
            return
        if char in ",}]:":
            self.state = "broken"
            return
        self._value, self._raw = JsonValue(), []
        wanted = self._key in _ARGUMENT_KEYS and not self._has_arguments
        self._has_arguments |= wanted
        self._step = self._in_arguments if wanted and char != '"' else self._in_value
        self._step(char)

    def _in_value(self, char: str) -> None:
        """Any value that is wanted whole: the name, arguments in a string, and what is passed over."""
        if self._value.is_scalar and char in ",}]" + _SPACE:
            self._after_value(char)
            return
        self._raw.append(char)
        if self._value.take(char):
            self._take_whole("".join(self._raw))
            if self.state == "open":
                self._step = self._after_value

    def _take_whole(self, raw: str) -> None:
        if self._key == "name" and self.index < 0:
            name = _string(raw)
            if not name or (self._names is not None and name not in self._names):
                self.state = "broken"
                return
            self.index = self._calls.begin(name)
            self._calls.arguments(self.index, self._waiting)
        elif self._key in _ARGUMENT_KEYS:
            self._pass_on(_string(raw) or "")

    def _in_arguments(self, char: str) -> None:
        if self._value.is_scalar and char in ",}]" + _SPACE:
            self._after_value(char)
            return
        self._pass_on(char)
        if self._value.take(char):
            self._step = self._after_value

    def _pass_on(self, text: str) -> None:
        if self.index < 0:
            self._waiting += text
        else:
            self._fragment.append(text)

    def _after_value(self, char: str) -> None:
        if char == ",":
            self._step = self._before_key
        elif char == "}":
            self._end()
        elif char not in _SPACE:
            self.state = "broken"
        else:
            self._step = self._after_value

    def _end(self) -> None:
        if self.index < 0:
            self.state = "broken"
            return
        if not self._has_arguments:
            self._fragment.append("{}")
        self.state = "done"


class JsonCalls:
    """One call, several with `,` or `;` between them, or an array of calls.

    `state` is "done" after the array's end. Without an array it stays open, for another call may follow. Text that is
    no call makes it "broken".
    """

    def __init__(self, calls: Calls, names: frozenset[str] | None = None) -> None:
        self.state: State = "open"
        self.began = False  # a call has begun
        self._calls = calls
        self._names = names
        self._in_array = False
        self._is_first = True
        self._call: JsonCall | None = None

    def push(self, text: str, start: int = 0) -> int:
        """As JsonCall.push."""
        position = start
        while position < len(text) and self.state == "open":
            if self._call is not None:
                position = self._push_call(self._call, text, position)
                continue
            char = text[position]
            if char == "{":
                self._call = JsonCall(self._calls, self._names)
            elif char == "[" and self._is_first:
                self._in_array, self._is_first = True, False
                position += 1
            elif char == "]" and self._in_array:
                self.state = "done" if self.began else "broken"
                position += self.began
            elif char in _SPACE or (char in ",;" and self.began):
                position += 1
            else:
                self.state = "broken"
        return position

    def _push_call(self, call: JsonCall, text: str, position: int) -> int:
        position = call.push(text, position)
        self.began |= call.index >= 0
        if call.state == "open":
            return position
        self._call, self._is_first = None, False
        if call.state == "broken":
            self.state = "broken"
        return position


def _string(raw: str) -> str | None:
    """A JSON string's text; None for any other value."""
    try:
        value = json.loads(raw)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
