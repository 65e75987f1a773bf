from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.remote import sse
from engines.remote.sse import EventStreamParser, EventTooLong

STREAM = (
    b"\xef\xbb\xbf: a comment\n\n"
    b'data: {"a": "1\xc3\xa9"}\n\n'
    b"event: ping\r\ndata: two\r\ndata: lines\r\nid: 7\r\n\r\n"
    b"data:no space\rretry: 3\r\r"
    b"data\n\nevent: without data\n\n\n\ndata:  keeps one space\n\n"
    b"data: [DONE]\n\n"
)
EVENTS = [b'{"a": "1\xc3\xa9"}', b"two\nlines", b"no space", b" keeps one space", b"[DONE]"]


def parsed(pieces: list[bytes]) -> list[bytes]:
    parser = EventStreamParser()
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.flush()


def test_every_line_ending_comment_and_field_in_one_piece():
    assert parsed([STREAM]) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_cuts_anywhere_change_nothing(cuts: list[int]):
    edges = [0, *sorted(cuts), len(STREAM)]
    assert parsed([STREAM[a:b] for a, b in pairwise(edges)]) == EVENTS


def test_byte_by_byte_changes_nothing():
    assert parsed([STREAM[i : i + 1] for i in range(len(STREAM))]) == EVENTS


def test_event_is_given_as_soon_as_its_blank_line_came():
    parser = EventStreamParser()
    assert parser.feed(b"data: a\n") == []
    assert parser.feed(b"\ndata: b\n\ndata: c") == [b"a", b"b"]
    assert parser.flush() == [b"c"]
    assert parser.flush() == []


def test_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    parser = EventStreamParser()
    parser.feed(b"data: " + b"x" * 90)
    with pytest.raises(EventTooLong):
        parser.feed(b"x" * 10)
