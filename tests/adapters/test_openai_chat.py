from __future__ import annotations

import json
from typing import Any

import pytest

from adapters.openai_chat import ChatAdapter
from engines.api import ChatPrompt, Done, Finish, Started, TextDelta, Usage
from engines.errors import EngineUnavailable, InvalidRequest
from tests.adapters import sdk
from tests.adapters.driving import USER, answer, chat, collect, frames, logprob, story, stream


def chat_prompt(**fields: Any) -> ChatPrompt:
    (request,) = chat(**fields).requests
    assert isinstance(request.prompt, ChatPrompt)
    return request.prompt


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_max_completion_tokens_is_the_new_name_of_max_tokens() -> None:
    assert chat(max_tokens=3).requests[0].sampling.max_tokens == 3
    assert chat(max_completion_tokens=3).requests[0].sampling.max_tokens == 3
    assert chat(max_completion_tokens=3, max_tokens=3).requests[0].sampling.max_tokens == 3
    assert chat().requests[0].sampling.max_tokens is None


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 2, "logprobs": False}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream_options": {}, "stream": False}, "stream_options"),
        ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"min_tokens": 4, "max_tokens": 3}, "min_tokens"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"messages": [*USER, {"role": "assistant"}]}, "messages[1].content"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": []}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": "x", "refusal": "no"}]}, "messages[0].refusal"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ],
)
def test_contradictions_are_refused_by_the_field_at_fault(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert caught.value.field == named


def test_logprobs_without_top_logprobs_asks_for_the_chosen_token_alone() -> None:
    assert chat(logprobs=True).requests[0].sampling.logprobs == 0
    assert chat(logprobs=True, top_logprobs=20).requests[0].sampling.logprobs == 20
    assert chat(logprobs=False, top_logprobs=0).requests[0].sampling.logprobs is None


def test_the_final_message_is_continued_instead_of_answered() -> None:
    prompt = chat_prompt(continue_final_message=True)
    assert (prompt.continue_final_message, prompt.add_generation_prompt) == (True, False)
    prompt = chat_prompt()
    assert (prompt.continue_final_message, prompt.add_generation_prompt) == (False, True)


def test_reasoning_effort_goes_to_the_template_and_to_an_upstream() -> None:
    assert chat_prompt(reasoning_effort="low").template_kwargs == {"reasoning_effort": "low", "enable_thinking": True}
    assert chat_prompt(reasoning_effort="none").template_kwargs["enable_thinking"] is False
    assert chat(reasoning_effort="low").requests[0].forwarded == {"reasoning_effort": "low"}
    both = chat_prompt(reasoning_effort="low", chat_template_kwargs={"reasoning_effort": "mine", "x": [1]})
    assert both.template_kwargs == {"reasoning_effort": "mine", "enable_thinking": True, "x": [1]}


def test_messages_lose_their_nulls_and_keep_the_rest() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}
    messages = [
        {"role": "developer", "content": "d", "name": None},
        {"role": "user", "content": [{"type": "text", "text": "a", "prompt_cache_breakpoint": {"mode": "explicit"}}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "audio": None, "annotations": []},
        {"role": "tool", "content": "r", "tool_call_id": "c"},
        {"role": "assistant", "content": "b", "reasoning": "because", "tool_calls": []},
        {"role": "assistant", "content": "c", "reasoning_content": "because"},
        {"role": "function", "content": None, "name": "f"},
    ]
    assert list(chat_prompt(messages=messages).messages) == [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "r", "tool_call_id": "c"},
        {"role": "assistant", "content": "b", "reasoning_content": "because"},
        {"role": "assistant", "content": "c", "reasoning_content": "because"},
        {"role": "function", "name": "f"},
    ]


def test_the_prompt_is_asked_back_only_where_the_answer_tells_it() -> None:
    assert not chat().requests[0].echo
    assert chat(return_token_ids=True).requests[0].echo
    assert chat(prompt_logprobs=0).requests[0].echo


# --- the stream -------------------------------------------------------------------------------------------------------


def test_a_stream_is_a_role_chunk_text_chunks_one_finish_and_done() -> None:
    *chunks, done = stream(chat(stream=True), story())
    assert done == "[DONE]"
    parsed = [sdk.chat_chunk(chunk) for chunk in chunks]
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": " a"},
        {"content": " time"},
        {},
    ]
    assert [chunk.choices[0].finish_reason for chunk in parsed] == [None, None, None, "stop"]
    assert chunks[-1]["choices"][0]["stop_reason"] == 7
    assert all("usage" not in chunk for chunk in chunks)
    for chunk in parsed:
        assert (chunk.id, chunk.model, chunk.system_fingerprint) == ("chatcmpl-r1", "m", "fp")
        assert chunk.created == parsed[0].created


def test_the_last_text_and_the_finish_reason_travel_together() -> None:
    events = [
        Started(prompt_tokens=1),
        TextDelta(0, "all of it", 3, finish=Finish("length")),
        Done(Usage(prompt_tokens=1, completion_tokens=3)),
    ]
    *_, last, _ = stream(chat(stream=True), events)
    assert last["choices"][0] == {
        "index": 0,
        "delta": {"content": "all of it"},
        "logprobs": None,
        "finish_reason": "length",
        "stop_reason": None,
    }


def test_each_choice_has_its_own_role_and_finish() -> None:
    events = [
        Started(prompt_tokens=1),
        TextDelta(1, "b", 1),
        TextDelta(0, "a", 1, finish=Finish("stop")),
        TextDelta(1, "B", 1, finish=Finish("stop")),
        Done(Usage(prompt_tokens=1, completion_tokens=3)),
    ]
    chunks = stream(chat(stream=True, n=2), events)[:-1]
    seen = [(chunk["choices"][0]["index"], chunk["choices"][0]["delta"].get("content")) for chunk in chunks]
    assert seen == [(0, ""), (1, ""), (1, "b"), (0, "a"), (1, "B")]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop", "stop"]


USAGE = {
    "prompt_tokens": 2,
    "completion_tokens": 4,
    "total_tokens": 6,
    "prompt_tokens_details": {"cached_tokens": 1},
}


def test_the_usage_chunk_comes_last_without_choices_and_usage_is_null_before() -> None:
    *chunks, usage, done = stream(chat(stream=True, stream_options={"include_usage": True}), story())
    assert done == "[DONE]"
    assert [chunk["usage"] for chunk in chunks] == [None] * 4
    assert (usage["choices"], usage["usage"]) == ([], USAGE)
    sdk.chat_chunk(usage)


def test_include_usage_false_is_no_usage_at_all() -> None:
    chunks = stream(chat(stream=True, stream_options={"include_usage": False}), story())[:-1]
    assert all("usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize("include_usage", [True, False])
def test_continuous_usage_counts_up_to_the_final_count(include_usage: bool) -> None:
    options = {"include_usage": include_usage, "continuous_usage_stats": True}
    *chunks, _ = stream(chat(stream=True, stream_options=options), story())
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == [0, 1, 3, 4] + [4] * include_usage
    assert chunks[-1]["usage"] == USAGE
    assert (chunks[-1]["choices"] == []) is include_usage
    for chunk in chunks:
        sdk.chat_chunk(chunk)


def test_logprobs_of_held_back_pieces_come_with_the_next_chunk() -> None:
    chunks = stream(chat(stream=True, logprobs=True, top_logprobs=1), story())[:-1]
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert told[0] is None
    assert [[entry["token"] for entry in logprobs["content"]] for logprobs in told[1:]] == [[" a"], [" ti", "me"], [""]]
    assert told[1]["content"][0] == {
        "token": " a",
        "logprob": -0.5,
        "bytes": [32, 97],
        "top_logprobs": [{"token": " a", "logprob": -0.5, "bytes": [32, 97]}],
    }
    for chunk in chunks:
        sdk.chat_chunk(chunk)


def test_token_ids_of_held_back_pieces_come_with_the_next_chunk() -> None:
    chunks = stream(chat(stream=True, return_token_ids=True), story())[:-1]
    assert [chunk.get("prompt_token_ids") for chunk in chunks] == [[10, 11], None, None, None]
    assert [chunk["choices"][0].get("token_ids") for chunk in chunks] == [None, [1], [3, 5], [7]]


def test_a_held_back_piece_makes_no_frame() -> None:
    exchange = chat(stream=True)
    exchange.frame(0, Started(prompt_tokens=1))
    assert exchange.frame(0, TextDelta(0, "", 1, (5,), (logprob(5, "x", -1.0),))) == b""


@pytest.mark.parametrize("text", ['"', "\\", "\n\n", "\r\n", "\x00\x1f", "é", "日本", "🙂", "\u2028", "</script>"])
def test_any_text_survives_its_frame(text: str) -> None:
    exchange = chat(stream=True)
    exchange.frame(0, Started(prompt_tokens=1))
    (chunk,) = frames(exchange.frame(0, TextDelta(0, text, 1)))
    assert chunk["choices"][0]["delta"] == {"content": text}


def test_half_a_surrogate_pair_does_not_break_the_stream() -> None:
    exchange = chat(stream=True)
    exchange.frame(0, Started(prompt_tokens=1))
    (chunk,) = frames(exchange.frame(0, TextDelta(0, "a\ud83d", 1)))
    assert chunk["choices"][0]["delta"] == {"content": "a?"}


def test_odd_model_names_and_fingerprints_are_escaped() -> None:
    *chunks, _ = stream(chat(stream=True, model='a"b\\%d{}'), story())
    assert {chunk["model"] for chunk in chunks} == {'a"b\\%d{}'}


def test_an_error_in_a_stream_is_an_event_and_ends_it() -> None:
    error, done = frames(chat(stream=True).stream_error(EngineUnavailable("The engine stopped."), 503))
    assert done == "[DONE]"
    assert error == {"error": {"message": "The engine stopped.", "type": "server_error", "param": None, "code": None}}


# --- the whole answer -------------------------------------------------------------------------------------------------


def test_a_whole_answer_says_what_the_stream_says() -> None:
    whole = answer(chat(), story())
    parsed = sdk.chat_completion(whole)
    assert whole["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": " a time", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": 7,
        }
    ]
    assert (parsed.id, parsed.model, parsed.system_fingerprint) == ("chatcmpl-r1", "m", "fp")
    assert whole["usage"] == USAGE


def test_a_whole_answer_tells_logprobs_and_token_ids() -> None:
    fields = {"logprobs": True, "top_logprobs": 1, "return_token_ids": True, "prompt_logprobs": 1}
    whole = answer(chat(**fields), story())
    sdk.chat_completion(whole)
    (choice,) = whole["choices"]
    assert choice["token_ids"] == [1, 3, 5, 7]
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == [" a", " ti", "me", ""]
    assert [len(entry["top_logprobs"]) for entry in choice["logprobs"]["content"]] == [1, 1, 1, 1]
    assert whole["prompt_token_ids"] == [10, 11]
    assert whole["prompt_logprobs"] == [None, {"11": {"logprob": -0.25, "rank": 1, "decoded_token": " upon"}}]


def test_an_aborted_choice_is_told_as_cut_short() -> None:
    events = [
        Started(prompt_tokens=1),
        TextDelta(0, "a", 1, finish=Finish("abort")),
        Done(Usage(prompt_tokens=1, completion_tokens=1)),
    ]
    (choice,) = answer(chat(), events)["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "abort")


def test_an_answer_with_half_a_surrogate_pair_is_still_json() -> None:
    events = [
        Started(prompt_tokens=1),
        TextDelta(0, "a\ud83d", 1, finish=Finish("length")),
        Done(Usage(prompt_tokens=1, completion_tokens=1)),
    ]
    assert json.loads(chat().response(collect(chat(), events)))["choices"][0]["message"]["content"] == "a?"


def test_an_error_body_names_the_field() -> None:
    error = InvalidRequest("n: too many", field="n", code="invalid_value")
    assert json.loads(ChatAdapter().error(error, 400)) == {
        "error": {"message": "n: too many", "type": "invalid_request_error", "param": "n", "code": "invalid_value"}
    }
