"""An answer that must be calls ends at the first that repeats an earlier one, however its text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.native.answer_text import AnswerText
from engines.native.tools.formats import FORMATS

PARIS, LONDON, LONG = '{"city": "Paris"}', '{"city": "London"}', '{"city": "Paris", "unit": "C"}'
CASES: dict[str, tuple[list[tuple[str, str]], int, bool]] = {
    "all different": ([("a", PARIS), ("a", LONDON), ("b", PARIS), ("a", LONG)], 4, False),
    "at once": ([("a", PARIS), ("a", PARIS), ("a", LONDON)], 1, True),
    "in a circle": ([("a", PARIS), ("b", LONDON), ("a", LONG), ("b", LONDON), ("a", LONDON)], 3, True),
    "spaced otherwise": ([("a", PARIS), ("a", PARIS.replace(" ", ""))], 2, False),
    "without arguments": ([("a", "{}"), ("b", "{}"), ("b", "{}")], 2, True),
}
NAMES = frozenset("ab")


def written(calls: list[tuple[str, str]]) -> str:
    return "\n".join(f'<tool_call>\n{{"name": "{name}", "arguments": {text}}}\n</tool_call>' for name, text in calls)


def told(pieces: list[str], *, only_calls: bool = True) -> tuple[list[tuple[str, str]], AnswerText]:
    answer = AnswerText(None, FORMATS["hermes"].reader(NAMES), only_calls=only_calls)
    for piece in pieces:
        answer.push(piece)
    answer.finish()
    calls: list[tuple[str, str]] = []
    for call in answer.take().calls:
        if call.name is not None:
            calls.append((call.name, ""))
        assert call.index == len(calls) - 1
        calls[-1] = (calls[-1][0], calls[-1][1] + call.arguments)
    assert answer.num_calls == len(calls)
    return calls, answer


@pytest.mark.parametrize(("calls", "count", "is_over"), CASES.values(), ids=CASES)
def test_calls_are_told_up_to_the_first_repetition(calls: list[tuple[str, str]], count: int, is_over: bool):
    text = written(calls)
    for pieces in ([text], list(text)):
        heard, answer = told(pieces)
        assert heard == calls[:count]
        assert answer.is_over == is_over


def test_a_repetition_is_known_when_its_arguments_end():
    calls = written([("a", PARIS), ("a", PARIS)])
    end = calls.rindex("}}") + 1
    assert not told([calls[: end - 1]])[1].is_over
    assert told([calls[:end]])[1].is_over


def test_what_tokens_did_not_last_for_is_told_unless_it_only_repeats():
    calls = written([("a", PARIS), ("a", LONDON)])
    assert told([calls[: calls.index("Lon") + 3]])[0] == [("a", PARIS), ("a", '{"city": "Lon')]
    assert told([calls[: calls.index("Lon")]])[0] == [("a", PARIS)]


def test_an_answer_that_is_free_may_repeat_its_calls():
    calls = [("a", "{}")] * 3
    assert told([written(calls)], only_calls=False)[0] == calls


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([PARIS, LONDON, LONG, "{}"])), max_size=6), st.data())
def test_any_cut_tells_the_same_calls(calls: list[tuple[str, str]], data: st.DataObject):
    text = written(calls)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    distinct = list(dict.fromkeys(calls))
    expected = next((calls[:i] for i in range(len(calls)) if calls[i] in calls[:i]), distinct)
    assert told(pieces)[0] == expected
