"""Stop sequences: the same cut whatever the chunking, and never a part of a stop string in the stream."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.native.stop_sequences import StopMatcher


def run(stops: tuple[str, ...], chunks: list[str], include: bool = False) -> tuple[str, str | None]:
    """What a stream shows, and the stop that ended it; pushing goes on until the match, as an engine does."""
    matcher = StopMatcher(stops, include)
    shown = ""
    for chunk in chunks:
        emit, matched = matcher.push(chunk)
        shown += emit
        if matched is not None:
            break
    shown += matcher.flush()
    assert matcher.emitted_chars == len(shown)
    return shown, matcher.matched


def oracle(stops: tuple[str, ...], text: str, include: bool) -> tuple[str, str | None]:
    """By definition: the shortest prefix of the text that ends with a stop, and the longest stop that it ends with."""
    for end in range(len(text) + 1):
        endings = [stop for stop in stops if text[:end].endswith(stop)]
        if endings:
            winner = max(endings, key=len)
            return text[: end if include else end - len(winner)], winner
    return text, None


def pieces(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@pytest.mark.parametrize(
    ("stops", "chunks", "expected"),
    [
        pytest.param(("STOP",), ["abcSTOPdef"], ("abc", "STOP"), id="inside one chunk"),
        pytest.param(("STOP",), ["abcS", "T", "OPdef"], ("abc", "STOP"), id="split over chunks"),
        pytest.param(("STOP",), ["STO", "STOP"], ("STO", "STOP"), id="a failed start just before"),
        pytest.param(("aab",), ["a", "a", "a", "b"], ("a", "aab"), id="overlapping start"),
        pytest.param(("ab", "abcd"), ["xabcd"], ("x", "ab"), id="a prefix of another completes first"),
        pytest.param(("abcd", "bc"), ["abcd"], ("a", "bc"), id="an inner stop completes first"),
        pytest.param(("bc", "abc"), ["xab", "c"], ("x", "abc"), id="a tie goes to the earlier start"),
        pytest.param(("abc", "bc"), ["xab", "c"], ("x", "abc"), id="a tie does not depend on the order of stops"),
        pytest.param((".*", "[x]", "a+", "$"), ["aaa b.c [x] $"], ("aaa b.c ", "[x]"), id="regex metacharacters"),
        pytest.param(("\r\n\r\n",), ["a\r\n", "\r", "\nb"], ("a", "\r\n\r\n"), id="line ends"),
        pytest.param(("👩‍👩‍👧",), ["x👩‍", "👩‍👧y"], ("x", "👩‍👩‍👧"), id="emoji sequence"),
        pytest.param(("停止",), ["请停", "止吧"], ("请", "停止"), id="CJK"),
        pytest.param(("STOP",), ["ab", "ST"], ("abST", None), id="an unfinished start is released at the end"),
        pytest.param(("a", "a"), ["ba"], ("b", "a"), id="duplicates"),
        pytest.param(("ab",), ["", "a", "", "b"], ("", "ab"), id="empty chunks"),
    ],
)
def test_text_is_cut_just_before_the_stop(
    stops: tuple[str, ...], chunks: list[str], expected: tuple[str, str | None]
) -> None:
    assert run(stops, chunks) == expected


def test_included_stop_is_the_last_text_shown() -> None:
    assert run(("STOP", "x"), ["abcST", "OPdef"], include=True) == ("abcSTOP", "STOP")


@pytest.mark.parametrize("chunk_size", [1, 7, 400, 2000])
def test_stop_of_several_hundred_characters_is_found(chunk_size: int) -> None:
    stop = "".join(chr(ord("a") + i * i % 23) for i in range(350)) + "!"
    text = "before " + stop[:-1] + " " + stop + " after"
    chunks = [text[i : i + chunk_size] for i in range(0, len(text), chunk_size)]
    assert run((stop,), chunks) == ("before " + stop[:-1] + " ", stop)


def test_only_a_possible_start_is_held_back() -> None:
    matcher = StopMatcher(("<end>", "\n\n"))
    assert matcher.push("a < b <e") == ("a < b ", None)
    assert matcher.push("x") == ("<ex", None)
    assert matcher.push("line\n") == ("line", None)
    assert matcher.push("next") == ("\nnext", None)
    assert matcher.emitted_chars == len("a < b <exline\nnext")


def test_pushes_after_a_match_emit_nothing() -> None:
    matcher = StopMatcher(("b",))
    assert matcher.push("abc") == ("a", "b")
    assert matcher.push("more") == ("", "b")
    assert matcher.flush() == ""
    assert matcher.emitted_chars == 1


def test_flush_forgets_what_it_released() -> None:
    matcher = StopMatcher(("ab",))
    matcher.push("a")
    assert matcher.flush() == "a"
    assert matcher.push("b") == ("b", None)


def test_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="stop"):
        StopMatcher(("a", ""))


def test_no_stops_pass_everything() -> None:
    assert run((), ["a", "b"]) == ("ab", None)


few_letters = st.text(alphabet="abA.\n", max_size=60)
few_letter_stops = st.lists(st.text(alphabet="abA.\n", min_size=1, max_size=6), min_size=1, max_size=16).map(tuple)


@given(few_letter_stops, few_letters, st.lists(st.integers(0, 10_000), max_size=20), st.booleans())
def test_any_chunking_gives_the_defined_cut(stops: tuple[str, ...], text: str, cuts: list[int], include: bool) -> None:
    assert run(stops, pieces(text, cuts), include) == oracle(stops, text, include)


@given(st.data(), st.text(min_size=1, max_size=40), st.booleans())
def test_stops_taken_from_the_text_itself_are_found(data: st.DataObject, text: str, include: bool) -> None:
    spans = data.draw(st.lists(st.tuples(st.integers(0, len(text) - 1), st.integers(1, 12)), min_size=1, max_size=4))
    stops = tuple(text[start : start + size] for start, size in spans)
    cuts = data.draw(st.lists(st.integers(0, 10_000), max_size=10))
    assert run(stops, pieces(text, cuts), include) == oracle(stops, text, include)


@given(few_letter_stops, few_letters, st.lists(st.integers(0, 10_000), max_size=20))
def test_everything_shown_is_final_and_what_is_held_may_still_become_a_stop(
    stops: tuple[str, ...], text: str, cuts: list[int]
) -> None:
    matcher = StopMatcher(stops)
    shown, seen = "", ""
    for chunk in pieces(text, cuts):
        emit, matched = matcher.push(chunk)
        shown, seen = shown + emit, seen + chunk
        if matched is not None:
            return
        starts = {stop[:size] for stop in stops for size in range(len(stop))}
        assert seen == shown + max((start for start in starts if seen.endswith(start)), key=len)
