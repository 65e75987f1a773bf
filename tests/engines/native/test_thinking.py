"""Reasoning is told apart from the answer, however the text is cut and wherever the prompt left it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.native.thinking import TAGS, Start, ThinkingReader, find_tags

THINK = TAGS[0]


def read(start: Start, parts: list[str]) -> tuple[str, str]:
    reader = ThinkingReader(THINK, start)
    told = [reader.push(part) for part in parts] + [reader.finish()]
    return "".join(part.reasoning for part in told), "".join(part.text for part in told)


CASES: list[tuple[Start, str, str, str]] = [
    ("maybe", "<think>\nHm, so.\n</think>\n\nYes.", "Hm, so.", "Yes."),
    ("maybe", "\n<think>a</think>b", "a", "b"),
    ("maybe", "No tags <think>x</think>", "", "No tags <think>x</think>"),
    ("maybe", "  spaced", "", "  spaced"),
    ("maybe", "<thin", "", "<thin"),
    ("maybe", "<think>cut short </thi", "cut short </thi", ""),
    ("maybe", "<think></think>", "", ""),
    ("maybe", "", "", ""),
    ("inside", "Hm.\n</think>\nYes.", "Hm.", "Yes."),
    ("inside", "a < b\n\n and c", "a < b\n\n and c", ""),
    ("inside", "x</think>y</think>z", "x", "y</think>z"),
    ("answer", "<think>x</think> y ", "", "<think>x</think> y "),
]


@pytest.mark.parametrize(("start", "written", "reasoning", "text"), CASES)
def test_reasoning_and_answer_are_told_apart(start: Start, written: str, reasoning: str, text: str):
    for parts in ([written], list(written), *([written[:cut], written[cut:]] for cut in range(len(written)))):
        assert read(start, parts) == (reasoning, text)


@settings(max_examples=300, deadline=None)
@given(
    start=st.sampled_from(["inside", "maybe", "answer"]),
    written=st.lists(st.sampled_from(["<think>", "</think>", "<", "/think>", " ", "\n", "a", "é"]), max_size=12),
    data=st.data(),
)
def test_any_cut_gives_the_same(start: Start, written: list[str], data: st.DataObject):
    text = "".join(written)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    parts = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(start, parts) == read(start, [text])


@pytest.mark.parametrize(
    ("prompt", "start"),
    [
        ("<|im_start|>assistant\n", "maybe"),
        ("<|im_start|>assistant\n<think>\n", "inside"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "answer"),
        ("<think>old</think> answer<|im_end|>\n<|im_start|>assistant\n", "maybe"),
    ],
)
def test_a_prompt_says_where_its_answer_begins(prompt: str, start: Start):
    assert THINK.start_of(prompt) == start


def test_tags_are_those_that_the_template_has():
    assert find_tags("{% if '</think>' in content %}") == THINK
    assert find_tags("{{ content.split('[/THINK]') }}") == TAGS[1]
    assert find_tags("{{ messages }}") is None
