"""TGI's native API, from bytes to bytes: what is asked of the engine, and what clients read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapters.tgi import NativeAdapter, NativeExchange, facts_of
from adapters.tgi_types import NativeLimits
from engines.api import Done, Finish, PromptDetails, Started, TextDelta, TokenLogprob, Usage
from engines.errors import (
    EngineUnavailable,
    GenerationFailed,
    HeadraceError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PromptTooLong,
)
from tests.adapters.driving import answer, frames, logprob, stream

LIMITS = NativeLimits()


def parse(form: Any = "whole", limits: NativeLimits = LIMITS, **fields: Any) -> NativeExchange:
    body = {"inputs": "Once", **fields}
    return NativeAdapter(form, limits, lambda: "default").parse(json.dumps(body).encode(), {}, "r1")


def asked(**parameters: Any) -> Any:
    return parse(parameters=parameters).requests[0].sampling


def special(token_id: int, text: str, value: float) -> TokenLogprob:
    return TokenLogprob(token_id, text, text.encode(), value, special=True)


A = logprob(1, " a", -0.5, (1, " a", -0.5), (2, " the", -1.5))
TIME = logprob(3, " time", -1.0, (4, " day", -0.75), (3, " time", -1.0))
EOS = special(7, "</s>", -0.25)


def tale(*tokens: TokenLogprob, text: str, finish: Finish, index: int = 0) -> list[Any]:
    ids = tuple(token.token_id for token in tokens)
    return [
        Started(prompt_tokens=2),
        TextDelta(index, text, len(tokens), ids, tokens, finish),
        Done(Usage(prompt_tokens=2, completion_tokens=len(tokens))),
    ]


# --- what is asked of the engine --------------------------------------------------------------------------------------


def test_without_parameters_tokens_are_sampled_and_with_them_they_are_not():
    assert parse().requests[0].sampling.temperature == 1.0
    assert parse().requests[0].sampling.seed is not None
    assert asked().temperature == 0.0
    assert asked().seed is None


@pytest.mark.parametrize(
    "warper", [{"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.5}, {"typical_p": 0.5}, {"do_sample": True}]
)
def test_every_warper_means_sampling(warper: dict[str, Any]):
    sampling = asked(**warper)
    assert sampling.temperature == warper.get("temperature", 1.0)
    assert sampling.seed is not None


def test_neutral_values_are_said_outright_so_that_no_model_default_steps_in():
    sampling = asked(do_sample=True)
    assert (sampling.top_k, sampling.top_p, sampling.typical_p, sampling.repetition_penalty) == (0, 1.0, 1.0, 1.0)


def test_every_parameter_reaches_the_engine():
    exchange = parse(
        parameters={
            "temperature": 0.7,
            "repetition_penalty": 1.2,
            "frequency_penalty": 0.5,
            "top_k": 10,
            "top_p": 0.9,
            "typical_p": 0.8,
            "max_new_tokens": 12,
            "stop": ["x"],
            "truncate": 5,
            "seed": 2**64 - 1,
            "details": True,
            "decoder_input_details": True,
            "top_n_tokens": 3,
        }
    )
    (request,) = exchange.requests
    sampling = request.sampling
    assert request.model == "default"
    assert request.truncate_prompt_tokens == 5
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.typical_p) == (0.7, 10, 0.9, 0.8)
    assert (sampling.repetition_penalty, sampling.frequency_penalty) == (1.2, 0.5)
    assert (sampling.max_tokens, sampling.stop, sampling.seed) == (12, ("x",), 2**64 - 1)
    assert (sampling.logprobs, sampling.prompt_logprobs) == (3, 0)
    assert not sampling.logprobs_optional


def test_null_is_absent_for_every_parameter():
    from adapters.tgi_types import GenerateParameters

    nulls = dict.fromkeys(GenerateParameters.model_fields)
    assert parse(parameters=nulls, stream=None, model=None).requests == parse(parameters={}).requests


def test_older_name_of_stop_and_a_bare_string_are_understood():
    assert asked(stop="a", stop_sequences=["b"]).stop == ("a", "b")


def test_unknown_fields_are_taken_and_named():
    exchange = parse(parameters={"foo": 1}, options={"wait": True})
    assert facts_of(exchange).ignored == ("options", "parameters.foo")


def test_stop_string_stays_unless_the_server_or_the_request_says_otherwise():
    assert asked().include_stop_str_in_output
    assert not asked(include_stop_str_in_output=False).include_stop_str_in_output
    assert (
        not parse(limits=NativeLimits(keep_stop=False), parameters={}).requests[0].sampling.include_stop_str_in_output
    )


def test_watermark_is_asked_for_by_true_and_false_is_what_the_server_is_set_to():
    assert asked(watermark=True).watermark is True
    assert asked(watermark=False).watermark is None
    assert asked().watermark is None
    assert asked(watermark={"scheme": "gumbel"}).watermark.scheme == "gumbel"


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"best_of": 0}, "best_of"),
        ({"best_of": 3, "do_sample": True}, "best_of"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 2, "do_sample": True, "seed": 1}, "seed"),
        ({"temperature": 0.0}, "temperature"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"top_p": 1.0}, "top_p"),
        ({"top_p": 0}, "top_p"),
        ({"typical_p": 1.0}, "typical_p"),
        ({"top_k": 0}, "top_k"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"max_new_tokens": "5"}, "max_new_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"seed": -1}, "seed"),
        ({"top_n_tokens": 6}, "top_n_tokens"),
        ({"truncate": 0}, "truncate"),
        ({"adapter_id": "x"}, "adapter_id"),
        ({"details": "yes"}, "details"),
    ],
    ids=str,
)
def test_broken_rule_is_named_under_tgis_prefix(parameters: dict[str, Any], name: str):
    with pytest.raises(InvalidRequest) as refusal:
        parse(parameters=parameters)
    status, body = refused(refusal.value)
    assert status == 422
    assert body["error_type"] == "validation"
    assert body["error"].startswith("Input validation error: ")
    assert name in body["error"]


@pytest.mark.parametrize("parameters", [{"best_of": 2, "do_sample": True}, {"decoder_input_details": True}], ids=str)
def test_streams_refuse_what_only_a_whole_answer_can_tell(parameters: dict[str, Any]):
    parse(parameters=parameters)
    with pytest.raises(InvalidRequest, match="stream"):
        parse("stream", parameters=parameters)


@pytest.mark.parametrize("inputs", ["", ["a"], None], ids=repr)
def test_inputs_must_be_a_text(inputs: Any):
    with pytest.raises(InvalidRequest, match="inputs"):
        parse(inputs=inputs)


def refused(error: HeadraceError) -> tuple[int, Any]:
    from adapters.tgi_errors import native_status

    return native_status(error, 418), json.loads(NativeAdapter("whole", LIMITS, str).error(error, 0))


@pytest.mark.parametrize(
    ("error", "status", "kind", "start"),
    [
        (PromptTooLong("max_tokens is 9"), 422, "validation", "Input validation error: max_new_tokens is 9"),
        (InvalidRequest("bad", code="invalid_json"), 400, "validation", "Input validation error: "),
        (InvalidRequest("messages: no", code="template_error"), 422, "template_error", "Template error: no"),
        (Overloaded("full"), 429, "overloaded", "Model is overloaded"),
        (GenerationFailed("lost"), 424, "generation", "Request failed during generation: lost"),
        (GenerationFailed("bug", code="internal_error"), 418, "generation", "Request failed"),
        (EngineUnavailable("starting"), 418, "unavailable", "starting"),
        (ModelNotFound("x"), 418, "not_found", "The model 'x'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_each_error_has_tgis_type_and_status(error: HeadraceError, status: int, kind: str, start: str):
    got, body = refused(error)
    assert got == status
    assert body["error_type"] == kind
    assert body["error"].startswith(start)


# --- whole answers ----------------------------------------------------------------------------------------------------


def test_details_are_left_out_unless_asked_for():
    events = tale(A, EOS, text=" a", finish=Finish("stop"))
    assert answer(parse(parameters={}), events) == {"generated_text": " a"}


def test_root_answers_an_array_and_returns_the_full_text_unless_told_not_to():
    events = tale(A, EOS, text=" a", finish=Finish("stop"))
    assert answer(parse("any"), events) == [{"generated_text": "Once a"}]
    told = parse("any", parameters={"return_full_text": False})
    assert answer(told, events) == [{"generated_text": " a"}]
    assert answer(parse(parameters={"return_full_text": True}), events) == {"generated_text": "Once a"}


def test_details_tell_tokens_seed_and_how_it_ended():
    exchange = parse(parameters={"details": True, "seed": 5, "do_sample": True})
    details = answer(exchange, tale(A, EOS, text=" a", finish=Finish("stop")))["details"]
    assert details == {
        "finish_reason": "eos_token",
        "generated_tokens": 2,
        "seed": 5,
        "prefill": [],
        "tokens": [
            {"id": 1, "text": " a", "logprob": -0.5, "special": False},
            {"id": 7, "text": "</s>", "logprob": -0.25, "special": True},
        ],
    }


@pytest.mark.parametrize(
    ("finish", "word"),
    [
        (Finish("stop"), "eos_token"),
        (Finish("stop", 7), "eos_token"),
        (Finish("stop", "x"), "stop_sequence"),
        (Finish("length"), "length"),
        (Finish("abort"), "length"),
    ],
    ids=str,
)
def test_finish_reasons(finish: Finish, word: str):
    details = answer(parse(parameters={"details": True}), tale(A, text=" a", finish=finish))["details"]
    assert details["finish_reason"] == word
    assert details["seed"] is None


def test_top_tokens_are_told_for_each_token_when_asked_for():
    exchange = parse(parameters={"details": True, "top_n_tokens": 2})
    details = answer(exchange, tale(A, TIME, text=" a time", finish=Finish("length")))["details"]
    assert [[token["id"] for token in tops] for tops in details["top_tokens"]] == [[1, 2], [4, 3]]


def test_prefill_tells_the_prompts_tokens_and_the_first_has_no_logprob():
    prompt = PromptDetails(text="Onçe upon", token_ids=(10, 11), logprobs=(None, logprob(11, " upon", -0.25)))
    events = tale(A, text=" a", finish=Finish("length"))
    events[0] = Started(prompt_tokens=2, prompt=prompt)
    details = answer(parse(parameters={"decoder_input_details": True}), events)["details"]
    assert details["prefill"] == [
        {"id": 10, "text": "Onçe", "logprob": None},
        {"id": 11, "text": " upon", "logprob": -0.25},
    ]


def test_best_of_tells_the_likelier_first_and_the_other_with_its_own_seed():
    exchange = parse(parameters={"best_of": 2, "do_sample": True, "details": True})
    (request,) = exchange.requests
    assert request.n == 2
    worse, better = (
        tale(token, text=token.token, finish=Finish("length"), index=i) for i, token in enumerate((TIME, A))
    )
    told = answer(exchange, [*worse[:2], better[1], Done(Usage(prompt_tokens=2, completion_tokens=2))])
    assert told["generated_text"] == " a"
    seed = request.sampling.seed
    assert told["details"]["seed"] == seed + 1
    (other,) = told["details"]["best_of_sequences"]
    assert (other["generated_text"], other["seed"], other["generated_tokens"]) == (" time", seed, 1)


def test_character_over_two_tokens_is_the_text_of_the_second():
    halves = [TokenLogprob(i, "\ufffd", part, -1.0) for i, part in enumerate((b"\xc3", b"\xa9"))]
    details = answer(parse(parameters={"details": True}), tale(*halves, text="é", finish=Finish("length")))["details"]
    assert [token["text"] for token in details["tokens"]] == ["", "é"]


def test_unfinished_character_is_told_and_does_not_empty_the_text():
    half = TokenLogprob(0, "\ufffd", b"\xc3", -1.0)
    told = answer(parse(parameters={"details": True}), tale(A, half, text=" a\ufffd", finish=Finish("length")))
    assert told["generated_text"] == " a\ufffd"
    assert "".join(token["text"] for token in told["details"]["tokens"]) == " a\ufffd"


def test_tokens_end_with_the_text_where_a_stop_string_ends_inside_a_token():
    exchange = parse(parameters={"details": True, "stop": ["ti"]})
    details = answer(exchange, tale(A, TIME, text=" a ti", finish=Finish("stop", "ti")))["details"]
    assert [token["text"] for token in details["tokens"]] == [" a", " ti"]


# --- streams ----------------------------------------------------------------------------------------------------------


def test_stream_has_an_event_a_token_and_the_last_tells_the_text():
    exchange = parse("stream", parameters={"details": True, "top_n_tokens": 1})
    events = stream(
        exchange,
        [
            Started(prompt_tokens=2),
            TextDelta(0, " a time", 2, (1, 3), (A, TIME)),
            TextDelta(0, "", 1, (7,), (EOS,), Finish("stop")),
            Done(Usage(prompt_tokens=2, completion_tokens=3)),
        ],
    )
    assert [event["index"] for event in events] == [1, 2, 3]
    assert [event["token"]["text"] for event in events] == [" a", " time", "</s>"]
    assert [event["generated_text"] for event in events] == [None, None, " a time"]
    assert events[1]["top_tokens"] == [{"id": 4, "text": " day", "logprob": -0.75, "special": False}]
    assert events[-1]["details"] == {
        "finish_reason": "eos_token",
        "generated_tokens": 3,
        "seed": None,
        "input_length": 2,
    }


def test_stream_without_details_ends_with_null_and_without_top_tokens_has_no_such_key():
    (event,) = stream(parse("stream", parameters={}), tale(A, text=" a", finish=Finish("length")))
    assert event["details"] is None
    assert event["generated_text"] == " a"
    assert "top_tokens" not in event


def test_stream_of_an_engine_without_logprobs_still_tells_tokens():
    events = stream(
        parse("stream", parameters={}),
        [Started(prompt_tokens=1), TextDelta(0, "a", 1, (5,)), TextDelta(0, "", 0, finish=Finish("stop"))],
    )
    assert events[0]["token"] == {"id": 5, "text": "a", "logprob": None, "special": False}
    assert events[1]["token"]["special"]
    assert events[1]["generated_text"] == "a"


def test_error_in_a_stream_is_an_event_and_nothing_follows():
    exchange = parse("stream")
    (event,) = frames(exchange.stream_error(GenerationFailed("lost"), 500))
    assert event == {"error": "Request failed during generation: lost", "error_type": "generation"}
    assert exchange.end() == b""


@pytest.mark.parametrize(("form", "streams"), [("any", True), ("whole", False), ("stream", True)])
def test_the_route_decides_whether_a_request_streams(form: Any, streams: bool):
    assert parse(form, stream=True).stream is streams
