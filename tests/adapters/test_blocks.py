from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from adapters.blocks import Blocks
from engines.api import Finish, TextDelta, ToolCallDelta
from tests.adapters.driving import logprob


def said(blocks: Blocks) -> list[tuple[str, str]]:
    return [(block.kind, block.text) for block in blocks.all]


def test_a_delta_of_several_parts_is_read_in_the_order_it_was_said() -> None:
    call = ToolCallDelta(0, "{}", "c1", "f")
    blocks = Blocks.of([TextDelta(0, "b", reasoning="a", tool_calls=(call,), finish=Finish("tool_calls"))])
    assert said(blocks) == [("reasoning", "a"), ("text", "b"), ("call", "{}")]
    assert (blocks.all[2].id, blocks.all[2].name) == ("c1", "f")
    assert blocks.finish == Finish("tool_calls")


def test_each_call_is_a_block_of_its_own_and_text_after_it_another() -> None:
    first = (ToolCallDelta(0, "", "c1", "f"), ToolCallDelta(0, '{"a"'))
    second = (ToolCallDelta(0, ":1}"), ToolCallDelta(1, "{}", "c2", "g"))
    blocks = Blocks.of([TextDelta(0, "x", tool_calls=first), TextDelta(0, "", tool_calls=second), TextDelta(0, "y")])
    assert said(blocks) == [("text", "x"), ("call", '{"a":1}'), ("call", "{}"), ("text", "y")]


def test_an_answer_that_says_nothing_is_an_empty_text() -> None:
    assert said(Blocks.of([TextDelta(0, "", 1, finish=Finish("stop"))])) == [("text", "")]


def test_logprobs_of_text_that_was_held_back_come_with_it() -> None:
    a, b, end = logprob(1, "a", -1), logprob(2, "b", -2), logprob(3, "", -3)
    deltas = [TextDelta(0, "", 1, (), (a,)), TextDelta(0, "ab", 1, (), (b,)), TextDelta(0, "", 1, (), (end,))]
    assert Blocks.of(deltas).all[0].logprobs == [a, b, end]


@st.composite
def answers(draw: Any) -> list[TextDelta]:
    parts = draw(st.lists(st.tuples(st.sampled_from(["reasoning", "text", "call", "more"]), st.text(max_size=3))))
    deltas: list[TextDelta] = []
    for index, (kind, text) in enumerate(parts):
        if kind == "reasoning":
            deltas.append(TextDelta(0, "", reasoning=text))
        elif kind == "text":
            deltas.append(TextDelta(0, text))
        else:
            identity = (f"c{index}", "f") if kind == "call" else (None, None)
            deltas.append(TextDelta(0, "", tool_calls=(ToolCallDelta(index, text, *identity),)))
    return deltas


@given(answers())
def test_steps_open_grow_and_close_one_block_after_the_other(deltas: list[TextDelta]) -> None:
    blocks = Blocks()
    steps = [step for delta in deltas for step in blocks.add(delta)] + list(blocks.end())
    texts: list[str] = []
    is_open = False
    for step in steps:
        assert (step.kind == "opened") != is_open
        if step.kind == "opened":
            assert step.block.index == len(texts)
            texts.append("")
            is_open = True
        elif step.kind == "grew":
            texts[-1] += step.piece
        else:
            is_open = False
    assert not is_open
    assert texts == [block.text for block in blocks.all]
    assert len(texts) >= 1
