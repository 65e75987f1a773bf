from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from engines.api import (
    ChatPrompt,
    GenerationRequest,
    Grammar,
    JsonObject,
    JsonSchema,
    OneOf,
    Prompt,
    Regex,
    SamplingParams,
    StructuredOutput,
    TextPrompt,
    TokensPrompt,
    ToolChoice,
    WatermarkParams,
)
from engines.errors import UnsupportedByEngine
from engines.remote.body import encode_body, path_of

CHAT = ChatPrompt(messages=({"role": "user", "content": "hé"},))

# A value other than the default for every SamplingParams field, and what the upstream is to be sent for it.
SAMPLING: dict[str, tuple[Any, dict[str, Any]]] = {
    "max_tokens": (7, {"max_tokens": 7}),
    "min_tokens": (2, {"min_tokens": 2}),
    "temperature": (0.0, {"temperature": 0.0}),
    "top_p": (0.5, {"top_p": 0.5}),
    "top_k": (4, {"top_k": 4}),
    "min_p": (0.1, {"min_p": 0.1}),
    "typical_p": (0.9, {"typical_p": 0.9}),
    "repetition_penalty": (1.1, {"repetition_penalty": 1.1}),
    "presence_penalty": (0.2, {"presence_penalty": 0.2}),
    "frequency_penalty": (0.3, {"frequency_penalty": 0.3}),
    "logit_bias": (((5, -1.0),), {"logit_bias": {"5": -1.0}}),
    "bad_words": (("no",), {"bad_words": ["no"]}),
    "allowed_token_ids": ((4, 5), {"allowed_token_ids": [4, 5]}),
    "seed": (3, {"seed": 3}),
    "stop": (("a", "b"), {"stop": ["a", "b"]}),
    "stop_token_ids": ((2,), {"stop_token_ids": [2]}),
    "include_stop_str_in_output": (True, {"include_stop_str_in_output": True}),
    "ignore_eos": (True, {"ignore_eos": True}),
    "logprobs": (0, {"logprobs": True}),
    "skip_special_tokens": (False, {"skip_special_tokens": False}),
    "spaces_between_special_tokens": (False, {"spaces_between_special_tokens": False}),
    "watermark": (WatermarkParams(scheme="gumbel", key="k"), {"watermark": {"scheme": "gumbel", "key": "k"}}),
}


def sent(prompt: Prompt = CHAT, *, chat_max_tokens_field: str = "max_tokens", **fields: Any) -> dict[str, Any]:
    request = GenerationRequest(request_id="r", model="m", prompt=prompt, **({"stream": False} | fields))
    return json.loads(encode_body(request, model="up", chat_max_tokens_field=chat_max_tokens_field))


def test_plain_request_sends_only_what_it_says():
    assert sent() == {"model": "up", "messages": [{"role": "user", "content": "hé"}]}
    assert sent(TextPrompt("p")) == {"model": "up", "prompt": "p"}
    assert sent(TokensPrompt((1, 2))) == {"model": "up", "prompt": [1, 2]}


def test_stream_asks_for_usage():
    assert sent(stream=True) == sent() | {"stream": True, "stream_options": {"include_usage": True}}


def test_every_sampling_field_is_sent_or_refused():
    names = {field.name for field in dataclasses.fields(SamplingParams)}
    assert names == SAMPLING.keys() | {"prompt_logprobs", "logprobs_optional"}


@pytest.mark.parametrize("name", SAMPLING)
def test_sampling_field_is_sent_when_set(name: str):
    value, expected = SAMPLING[name]
    assert sent(sampling=SamplingParams(**{name: value})) == sent() | expected


def test_logprobs_are_asked_for_in_each_routes_words():
    sampling = SamplingParams(logprobs=3)
    assert sent(sampling=sampling) == sent() | {"logprobs": True, "top_logprobs": 3}
    assert sent(TextPrompt("p"), sampling=sampling) == sent(TextPrompt("p")) | {"logprobs": 3}


def test_chat_output_limit_can_go_by_its_newer_name():
    sampling = SamplingParams(max_tokens=7)
    newer = "max_completion_tokens"
    assert sent(sampling=sampling, chat_max_tokens_field=newer) == sent() | {newer: 7}
    text = TextPrompt("p")
    assert sent(text, sampling=sampling, chat_max_tokens_field=newer) == sent(text) | {"max_tokens": 7}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"n": 2}, {"n": 2}),
        ({"truncate_prompt_tokens": 9}, {"truncate_prompt_tokens": 9}),
        (
            {"truncate_prompt_tokens": -1, "truncation_side": "right"},
            {"truncate_prompt_tokens": -1, "truncation_side": "right"},
        ),
        ({"priority": -2}, {"priority": -2}),
        ({"prompt": dataclasses.replace(CHAT, template="x")}, {"chat_template": "x"}),
        ({"cache_salt": "s"}, {"cache_salt": "s"}),
        ({"forwarded": {"user": "u", "model": "not this"}}, {"user": "u"}),
    ],
    ids=lambda value: next(iter(value)),
)
def test_request_field_is_sent_when_set(fields: dict[str, Any], expected: dict[str, Any]):
    assert sent(**fields) == sent() | expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"add_generation_prompt": False}, {"add_generation_prompt": False}),
        ({"continue_final_message": True}, {"continue_final_message": True}),
        ({"add_special_tokens": True}, {"add_special_tokens": True}),
        ({"template_kwargs": {"enable_thinking": False}}, {"chat_template_kwargs": {"enable_thinking": False}}),
    ],
    ids=lambda value: next(iter(value)),
)
def test_template_switch_is_sent_when_set(fields: dict[str, Any], expected: dict[str, Any]):
    assert sent(dataclasses.replace(CHAT, **fields)) == sent() | expected


def test_text_prompt_without_special_tokens_says_so():
    assert sent(TextPrompt("p", add_special_tokens=False)) == {
        "model": "up",
        "prompt": "p",
        "add_special_tokens": False,
    }


def test_what_an_answer_could_not_bring_back_is_refused_by_name():
    with pytest.raises(UnsupportedByEngine) as caught:
        sent(sampling=SamplingParams(prompt_logprobs=0))
    assert caught.value.field == "prompt_logprobs"


TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (ToolChoice(), {}),
        (ToolChoice("required"), {"tool_choice": "required"}),
        (ToolChoice("named", "f"), {"tool_choice": {"type": "function", "function": {"name": "f"}}}),
        (ToolChoice(parallel=False), {"parallel_tool_calls": False}),
    ],
    ids=["auto", "required", "named", "one call"],
)
def test_tools_and_the_choice_among_them_are_sent(choice: ToolChoice, expected: dict[str, Any]):
    with_tools = dataclasses.replace(CHAT, tools=(TOOL,))
    assert sent(with_tools, tool_choice=choice) == sent() | {"tools": [TOOL]} | expected
    assert sent(tool_choice=choice) == sent()


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (JsonObject(), {"response_format": {"type": "json_object"}}),
        (
            JsonSchema({"type": "null"}, "n", strict=True),
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"type": "null"}, "strict": True},
                }
            },
        ),
        (Regex("a"), {"structured_outputs": {"regex": "a"}}),
        (OneOf(("a", "b")), {"structured_outputs": {"choice": ["a", "b"]}}),
        (Grammar("g"), {"structured_outputs": {"grammar": "g"}}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_form_is_sent_in_the_field_that_has_it(form: Any, expected: dict[str, Any]):
    assert sent(structured_output=StructuredOutput(form, "f")) == sent() | expected


def test_a_thinking_budget_is_sent():
    assert sent(thinking_budget=5) == sent() | {"thinking_token_budget": 5}


def test_route_follows_the_prompt():
    paths = [path_of(GenerationRequest(request_id="r", model="m", prompt=p)) for p in (CHAT, TextPrompt("p"))]
    assert paths == ["/chat/completions", "/completions"]
