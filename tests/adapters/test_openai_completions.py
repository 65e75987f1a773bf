from __future__ import annotations

from typing import Any

import pytest

from adapters.adapter import CollectedChoice
from adapters.openai_completions import best
from engines.api import (
    Done,
    Finish,
    GenerationEvent,
    PromptDetails,
    Started,
    TextDelta,
    TextPrompt,
    TokensPrompt,
    Usage,
)
from engines.errors import GenerationFailed, InvalidRequest
from tests.adapters import sdk
from tests.adapters.driving import answer, complete, logprob, story, stream

# --- what is asked ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "means"),
    [
        pytest.param("a", [TextPrompt("a")], id="string"),
        pytest.param("", [TextPrompt("")], id="empty-string"),
        pytest.param(["a", "b"], [TextPrompt("a"), TextPrompt("b")], id="strings"),
        pytest.param([0, 7], [TokensPrompt((0, 7))], id="token-ids"),
        pytest.param([[1], [2, 3]], [TokensPrompt((1,)), TokensPrompt((2, 3))], id="lists-of-token-ids"),
    ],
)
def test_a_prompt_has_four_forms(prompt: object, means: list[object]) -> None:
    requests = complete(prompt=prompt).requests
    assert [request.prompt for request in requests] == means
    assert len({request.request_id for request in requests}) == len(means)


@pytest.mark.parametrize(
    "prompt", [None, 3, {}, [], [[]], ["a", 1], [1, "a"], [1, [2]], [[1], 2], [-1], [2**31], [1.0], [True], [["a"]]]
)
def test_other_prompts_are_refused(prompt: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        complete(prompt=prompt)
    assert caught.value.field == "prompt"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"suffix": "x"}, "suffix"),
        ({"prompt": ["a"] * 17, "n": 128}, "prompt"),
        ({"min_tokens": 17}, "min_tokens"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        complete(**fields)
    assert caught.value.field == named


def test_sixteen_tokens_are_generated_unless_told_otherwise() -> None:
    assert complete().requests[0].sampling.max_tokens == 16
    assert complete(max_tokens=None).requests[0].sampling.max_tokens == 16
    assert complete(max_tokens=0, echo=True).requests[0].sampling.max_tokens == 0


def test_echoed_logprobs_need_the_prompts_logprobs() -> None:
    def prompt_logprobs(**fields: Any) -> int | None:
        return complete(**fields).requests[0].sampling.prompt_logprobs

    assert prompt_logprobs(logprobs=3) is None
    assert prompt_logprobs(logprobs=3, echo=True) == 3
    assert prompt_logprobs(logprobs=3, echo=True, prompt_logprobs=5) == 5
    assert prompt_logprobs(prompt_logprobs=0) == 0


def test_best_of_asks_for_more_choices_and_for_their_logprobs() -> None:
    (request,) = complete(n=2, best_of=5).requests
    assert (request.n, request.sampling.logprobs) == (5, 0)
    (request,) = complete(n=2, best_of=5, logprobs=3).requests
    assert (request.n, request.sampling.logprobs) == (5, 3)
    (request,) = complete(n=2, best_of=2, stream=True).requests
    assert (request.n, request.sampling.logprobs) == (2, None)


# --- the stream -------------------------------------------------------------------------------------------------------


def texts(chunks: list[Any]) -> list[str]:
    return [chunk["choices"][0]["text"] for chunk in chunks]


def test_a_stream_is_text_chunks_one_finish_and_done() -> None:
    *chunks, done = stream(complete(stream=True), story())
    assert done == "[DONE]"
    assert texts(chunks) == [" a", " time", ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    for chunk in chunks:
        parsed = sdk.completion(chunk)
        assert (parsed.id, parsed.model, parsed.system_fingerprint) == ("cmpl-r1", "m", "fp")


def test_choices_count_over_all_prompts() -> None:
    def events(word: str) -> list[GenerationEvent]:
        return [
            Started(prompt_tokens=3, cached_tokens=2),
            TextDelta(1, word + "1", 1, finish=Finish("stop")),
            TextDelta(0, word + "0", 1, finish=Finish("stop")),
            Done(Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=2)),
        ]

    fields: dict[str, Any] = {"prompt": ["a", "b"], "n": 2}
    usage = {"prompt_tokens": 6, "completion_tokens": 4, "total_tokens": 10}
    usage["prompt_tokens_details"] = {"cached_tokens": 4}  # pyright: ignore
    *chunks, last, _ = stream(
        complete(**fields, stream=True, stream_options={"include_usage": True}), events("a"), events("b")
    )
    streamed = {chunk["choices"][0]["index"]: chunk["choices"][0]["text"] for chunk in chunks}
    assert streamed == {0: "a0", 1: "a1", 2: "b0", 3: "b1"}
    assert last["usage"] == usage
    whole = answer(complete(**fields), events("a"), events("b"))
    assert [(choice["index"], choice["text"]) for choice in whole["choices"]] == sorted(streamed.items())
    assert whole["usage"] == usage


def test_echo_begins_each_choice_with_the_prompt() -> None:
    *chunks, _ = stream(complete(stream=True, echo=True), story())
    assert texts(chunks) == ["Once upon", " a", " time", ""]


def test_echoed_logprobs_run_through_prompt_and_completion() -> None:
    fields: dict[str, Any] = {"echo": True, "logprobs": 1}
    (choice,) = answer(complete(**fields), story())["choices"]
    assert choice["text"] == "Once upon a time"
    assert choice["logprobs"] == {
        "tokens": ["Once", " upon", " a", " ti", "me", ""],
        "token_logprobs": [None, -0.25, -0.5, -1.0, -0.125, -0.0625],
        "top_logprobs": [
            None,
            {" upon": -0.25},
            {" a": -0.5},
            {" ti": -1.0, " day": -0.75},
            {"me": -0.125},
            {"": -0.0625},
        ],
        "text_offset": [0, 4, 9, 11, 14, 16],
    }
    *chunks, _ = stream(complete(**fields, stream=True), story())
    for member, expected in choice["logprobs"].items():
        assert [entry for chunk in chunks for entry in chunk["choices"][0]["logprobs"][member]] == expected


def test_scoring_a_prompt_generates_nothing() -> None:
    events: list[GenerationEvent] = [
        story()[0],
        TextDelta(0, "", finish=Finish("length")),
        Done(Usage(prompt_tokens=2, completion_tokens=0)),
    ]
    fields: dict[str, Any] = {"echo": True, "max_tokens": 0, "logprobs": 0}
    whole = answer(complete(**fields), events)
    (choice,) = whole["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("Once upon", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, -0.25]
    assert whole["usage"]["completion_tokens"] == 0
    *chunks, _ = stream(complete(**fields, stream=True), events)
    assert texts(chunks) == ["Once upon", ""]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_logprobs_without_echo_count_offsets_from_the_completion() -> None:
    (choice,) = answer(complete(logprobs=0), story())["choices"]
    assert choice["logprobs"]["text_offset"] == [0, 2, 5, 7]
    assert choice["logprobs"]["top_logprobs"] == [{" a": -0.5}, {" ti": -1.0}, {"me": -0.125}, {"": -0.0625}]
    sdk.completion(answer(complete(logprobs=0), story()))


def test_token_ids_are_told_for_the_prompt_once_and_for_each_piece() -> None:
    *chunks, _ = stream(complete(stream=True, return_token_ids=True), story())
    assert texts(chunks) == ["", " a", " time", ""]
    assert [chunk["choices"][0].get("prompt_token_ids") for chunk in chunks] == [[10, 11], None, None, None]
    assert [chunk["choices"][0]["token_ids"] for chunk in chunks] == [[], [1], [3, 5], [7]]
    (choice,) = answer(complete(return_token_ids=True), story())["choices"]
    assert (choice["prompt_token_ids"], choice["token_ids"]) == ([10, 11], [1, 3, 5, 7])


def test_prompt_logprobs_are_told_for_each_choice() -> None:
    (choice,) = answer(complete(prompt_logprobs=2), story())["choices"]
    assert choice["prompt_logprobs"] == [
        None,
        {
            "11": {"logprob": -0.25, "rank": 1, "decoded_token": " upon"},
            "12": {"logprob": -2.0, "rank": 2, "decoded_token": " more"},
        },
    ]


def test_an_engine_that_keeps_an_echoed_prompt_to_itself_fails_before_the_first_byte() -> None:
    with pytest.raises(GenerationFailed):
        complete(stream=True, echo=True).frame(0, Started(prompt_tokens=2))


# --- best_of ----------------------------------------------------------------------------------------------------------


def test_best_of_keeps_the_choices_of_highest_mean_logprob() -> None:
    def choice(index: int, *values: float) -> list[GenerationEvent]:
        tokens = tuple(logprob(position, "x", value) for position, value in enumerate(values))
        return [TextDelta(index, f"choice {index}", len(values), logprobs=tokens, finish=Finish("stop"))]

    events = [
        Started(prompt_tokens=1),
        *choice(0, -1.0, -1.0),
        *choice(1, -0.5, -0.5, -0.5, -0.5, -0.5, -0.5),  # the lowest sum, not the lowest mean
        *choice(2, -3.0),
        *choice(3, -0.25, -0.5),
        Done(Usage(prompt_tokens=1, completion_tokens=11)),
    ]
    whole = answer(complete(n=2, best_of=4), events)
    assert [(choice["index"], choice["text"]) for choice in whole["choices"]] == [(0, "choice 3"), (1, "choice 1")]
    assert [choice["logprobs"] for choice in whole["choices"]] == [None, None]
    assert whole["usage"]["completion_tokens"] == 11  # what was generated, not what was kept
    sdk.completion(whole)


def test_without_a_surplus_choices_keep_their_order() -> None:
    choices = [CollectedChoice(0, logprobs=[logprob(1, "x", -9.0)]), CollectedChoice(1)]
    assert best(choices, 2) == choices
    assert best(choices, 1) == choices[:1]


# --- offsets ----------------------------------------------------------------------------------------------------------


def test_an_echoed_prompt_longer_than_its_known_tokens_gives_the_rest_to_the_first() -> None:
    prompt = PromptDetails(
        text="é日",
        token_ids=(1, 2, 3),
        logprobs=(None, logprob(2, "é", -1.0), logprob(3, "日", -1.0)),  # the first is BOS: no text
    )
    (choice,) = answer(complete(echo=True, logprobs=0), story(prompt))["choices"]
    assert choice["logprobs"]["tokens"][:4] == ["", "é", "日", " a"]
    assert choice["logprobs"]["text_offset"][:4] == [0, 0, 1, 2]
