"""What models write as tool calls is read the same however it is cut; what is no call stays text."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.native.tools.calls import CallReader, Piece
from engines.native.tools.mistral import MistralReader
from engines.native.tools.pythonic import PythonicReader
from engines.native.tools.readers import MarkedReader, WholeReader

NAMES = frozenset({"get_weather", "add", "now"})


def hermes() -> CallReader:
    return MarkedReader("<tool_call>", "</tool_call>")


def llama3() -> CallReader:
    return WholeReader(NAMES, ("<|python_tag|>",))


def plain_json() -> CallReader:
    return WholeReader(NAMES)


def mistral() -> CallReader:
    return MistralReader()


def pythonic() -> CallReader:
    return PythonicReader(NAMES)


READERS: list[Callable[[], CallReader]] = [hermes, llama3, plain_json, mistral, pythonic]
Read = tuple[str, list[tuple[str, str]]]


def read(reader: CallReader, parts: list[str]) -> Read:
    """The text and the calls, and a check of what every piece promises."""
    text, ids, calls = "", [], []
    pieces: list[Piece] = []
    for part in parts:
        pieces += reader.push(part)
    for piece in [*pieces, *reader.finish()]:
        if isinstance(piece, str):
            assert piece
            text += piece
            continue
        if piece.index == len(calls):
            assert piece.name
            assert piece.id
            assert len(piece.id) >= 9
            ids.append(piece.id)
            calls.append([piece.name, ""])
        else:
            assert piece.index == len(calls) - 1
            assert piece.name is None
            assert piece.id is None
        calls[piece.index][1] += piece.arguments
    assert len(set(ids)) == len(ids)
    return text, [(name, arguments) for name, arguments in calls]


A = ("get_weather", '{"city": "Paris"}')
B = ("add", '{"a": 1, "b": [2, {"c": "}\\"]"}]}')

CASES: list[tuple[Callable[[], CallReader], str, str, list[tuple[str, str]]]] = [
    (hermes, "No call <tool> here.", "No call <tool> here.", []),
    (hermes, '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>', "", [A]),
    (
        hermes,
        f'Let me see.\n<tool_call>{{"name":"get_weather","arguments":{A[1]}}}</tool_call>\n'
        f'<tool_call>\n{{"name": "add", "arguments": {B[1]}}}\n</tool_call>',
        "Let me see.",
        [A, B],
    ),
    (hermes, f'<tool_call>[{{"name":"get_weather","arguments":{A[1]}}}]</tool_call>', "", [A]),
    (hermes, f'<tool_call>{{"arguments": {A[1]}, "name": "get_weather"}}</tool_call>', "", [A]),
    (hermes, '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}</tool_call>', "", [A]),
    (hermes, '<tool_call>{"name": "now"}</tool_call>', "", [("now", "{}")]),
    (hermes, '<tool_call>{"id": 7, "name": "now", "x": [1, "]"], "arguments": null}', "", [("now", "null")]),
    (hermes, '<tool_call>{"name": "get_weather", "arguments": {"city": "Pa', "", [("get_weather", '{"city": "Pa')]),
    (hermes, "<tool_call>I would call it.</tool_call>", "<tool_call>I would call it.</tool_call>", []),
    (hermes, "2 < 3 <tool_cal", "2 < 3 <tool_cal", []),
    (hermes, '<tool_call>{"n', '<tool_call>{"n', []),
    (llama3, '{"name": "get_weather", "parameters": {"city": "Paris"}}', "", [A]),
    (
        llama3,
        f'<|python_tag|>{{"name": "get_weather", "parameters": {A[1]}}}; {{"name": "now"}}',
        "",
        [A, ("now", "{}")],
    ),
    (llama3, '{"name": "Bob", "parameters": {}}', '{"name": "Bob", "parameters": {}}', []),
    (llama3, "<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    (llama3, " The {answer} is 3.", " The {answer} is 3.", []),
    (
        plain_json,
        f'[{{"name": "get_weather", "arguments": {A[1]}}}, {{"name": "add", "arguments": {B[1]}}}]',
        "",
        [A, B],
    ),
    (plain_json, '{"answer": 42}', '{"answer": 42}', []),
    (plain_json, "[1, 2]", "[1, 2]", []),
    (plain_json, '{"name": "now"} done', "done", [("now", "{}")]),
    (
        mistral,
        f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {A[1]}}}, {{"name": "now"}}]',
        "",
        [A, ("now", "{}")],
    ),
    (mistral, f"Hm. [TOOL_CALLS]get_weather[ARGS]{A[1]}[TOOL_CALLS]add[CALL_ID]abcdefghi[ARGS]{B[1]}", "Hm.", [A, B]),
    (mistral, f"[TOOL_CALLS]get_weather{A[1]}", "", [A]),
    (mistral, "[TOOL_CALLS]no call", "[TOOL_CALLS]no call", []),
    (mistral, "Plain [TOOL", "Plain [TOOL", []),
    (pythonic, '[get_weather(city="Paris")]', "", [A]),
    (pythonic, "[get_weather(city='Paris'), now()]", "", [A, ("now", "{}")]),
    (
        pythonic,
        "<|python_start|>[add(a=-1, b=[2, {'c': \")]\"}], c=None, d=true, e=1.5)]<|python_end|>",
        "",
        [("add", '{"a": -1, "b": [2, {"c": ")]"}], "c": null, "d": true, "e": 1.5}')],
    ),
    (pythonic, "[unknown(a=1)]", "[unknown(a=1)]", []),
    (pythonic, "[add(1, 2)]", "[add(1, 2)]", []),
    (pythonic, "[add(a=open('x'))]", "[add(a=open('x'))]", []),
    (pythonic, "[1, 2]", "[1, 2]", []),
    (pythonic, "[add(a=1", "[add(a=1", []),
    (pythonic, "Plain text", "Plain text", []),
]


@pytest.mark.parametrize(
    ("make", "written", "text", "calls"), CASES, ids=lambda value: getattr(value, "__name__", None)
)
def test_calls_and_text_are_told_apart(make, written, text, calls):
    expected = text, calls
    assert read(make(), [written]) == expected
    assert read(make(), list(written)) == expected
    for cut in range(len(written)):
        assert read(make(), [written[:cut], written[cut:]]) == expected


ALPHABET = [
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", '{"name": "', "now", "add", '"',
    "{", "}", "[", "]", "(", ")", "=", ",", ";", ":", '"arguments": ', '"parameters": {"a": 1}', "\\", "\n", " ",
    "x", "1", "'", "é",
]  # fmt: skip


@pytest.mark.parametrize("make", READERS, ids=lambda make: make.__name__)
@settings(max_examples=300, deadline=None)
@given(written=st.lists(st.sampled_from(ALPHABET), max_size=25).map("".join), data=st.data())
def test_any_cut_gives_the_same_text_and_calls(make, written, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(written)), max_size=8)))
    parts = [written[start:end] for start, end in zip([0, *cuts], [*cuts, len(written)], strict=True)]
    assert read(make(), parts) == read(make(), [written])


objects = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)


def call_object(key: str, name: str, arguments: str) -> str:
    return f'{{"name": "{name}", "{key}": {arguments}}}'


WRITERS: dict[Callable[[], CallReader], Callable[[list[tuple[str, str]]], str]] = {
    hermes: lambda calls: "\n".join(
        f"<tool_call>\n{call_object('arguments', name, arguments)}\n</tool_call>" for name, arguments in calls
    ),
    llama3: lambda calls: "; ".join(call_object("parameters", *call) for call in calls),
    plain_json: lambda calls: "[" + ", ".join(call_object("arguments", *call) for call in calls) + "]",
    mistral: lambda calls: "".join(f"[TOOL_CALLS]{name}[ARGS]{arguments}" for name, arguments in calls),
}


@pytest.mark.parametrize("make", WRITERS, ids=lambda make: make.__name__)
@settings(max_examples=100, deadline=None)
@given(
    calls=st.lists(st.tuples(st.sampled_from(sorted(NAMES)), objects), min_size=1, max_size=3),
    indent=st.sampled_from([None, 2]),
    data=st.data(),
)
def test_whatever_the_arguments_they_come_through_as_they_were_written(make, calls, indent, data):
    written_calls = [(name, json.dumps(arguments, indent=indent, ensure_ascii=False)) for name, arguments in calls]
    written = WRITERS[make](written_calls)
    cut = data.draw(st.integers(0, len(written)))
    text, got = read(make(), [written[:cut], written[cut:]])
    assert not text.strip()
    assert got == written_calls
