"""Server-sent events out of bytes, wherever the network cuts them (WHATWG HTML, section 9.2.6).

Owns the framing alone: gives back each event's data as bytes and leaves its meaning to others. Event names, ids and
retry times are dropped, since OpenAI-compatible streams say everything in the data.
"""

from __future__ import annotations

from collections.abc import Iterator

MAX_EVENT_BYTES = 32 * 2**20  # an upstream that never ends its event must not fill our memory
_BOM = b"\xef\xbb\xbf"


class EventTooLong(Exception):
    """An event grew beyond MAX_EVENT_BYTES without ending."""


class EventStreamParser:
    """Feed it what was read; it returns the data of the events that are complete, and keeps the rest."""

    __slots__ = ("_rest", "_started")

    def __init__(self) -> None:
        self._rest = b""
        self._started = False

    def feed(self, piece: bytes) -> list[bytes]:
        text = self._rest + piece if self._rest else piece
        if not self._started:
            if len(text) < len(_BOM) and _BOM.startswith(text):
                self._rest = text
                return []
            text = text.removeprefix(_BOM)
            self._started = True
        held = b""
        if b"\r" in text:
            if text.endswith(b"\r"):  # the \n of a \r\n may be in the next piece
                text, held = text[:-1], b"\r"
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        blocks = text.split(b"\n\n")
        rest = blocks.pop()
        if len(rest) > MAX_EVENT_BYTES:
            raise EventTooLong(f"An event of the stream is longer than {MAX_EVENT_BYTES} bytes.")
        self._rest = rest + held
        return list(_data_of(blocks))

    def flush(self) -> list[bytes]:
        """What the stream left behind: an event whose blank line never came. Many servers end so."""
        rest, self._rest = self._rest, b""
        return list(_data_of([rest.replace(b"\r\n", b"\n").replace(b"\r", b"\n")]))


def _data_of(blocks: list[bytes]) -> Iterator[bytes]:
    for block in blocks:
        if block.startswith(b"data: ") and b"\n" not in block:  # nearly all of them
            yield block[6:]
            continue
        lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
        if lines:
            yield b"\n".join(lines)
