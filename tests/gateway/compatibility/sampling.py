"""Rows that the generating routes of OpenAI have in common: how tokens are chosen, when to stop, what form to keep."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from tests.gateway.compatibility.rows import (
    Answer,
    Row,
    generates,
    honoured,
    is_stream,
    no_effect,
    refused,
    says,
)

MODEL, ALIAS = "compat", "compat-alias"

# SmolLM2's tokens: where an answer must have a certain one, the request biases towards it.
EOS, IM_START, SOME = 2, 1, 33  # the last one's text is "1"
STOP = "111"
ALWAYS_SOME = {"logit_bias": {str(SOME): 100}}
STOPS_AFTER_SIX = {**ALWAYS_SOME, "stop_token_ids": [SOME], "min_tokens": 5}
ALWAYS_EOS = {"logit_bias": {str(EOS): 100}}

RANDOM = {"temperature": 1.8, "seed": 1}  # as good as never what the filters below leave


def _is_cut(told: Answer, plain: Answer) -> bool:
    return told.text == "" and plain.text.startswith(STOP)


def _keeps_stop(told: Answer, plain: Answer) -> bool:
    return (told.text, plain.text) == (STOP, "")


def _shows_special(told: Answer, plain: Answer) -> bool:
    return "<|im_start|>" in told.text and "<|im_start|>" not in plain.text


def _without_one(told: Answer, plain: Answer) -> bool:
    return "1" not in told.text and "1" in plain.text


def _is_all_ones(told: Answer, plain: Answer) -> bool:
    return set(told.text) == {"1"} != set(plain.text)


def _misses_cache(told: Answer, plain: Answer) -> bool:
    return told.num_cached == 0 < plain.num_cached


def _is_alias(told: Answer, plain: Answer) -> bool:
    return told.json["model"] == ALIAS and plain.json["model"] == MODEL and told.text == plain.text


def prompt_of(count: int):
    return lambda told, plain: told.num_prompt == count < plain.num_prompt


def sampling_rows(max_tokens: int, longer: Mapping[str, Any]) -> tuple[Row, ...]:
    """Of every route. `max_tokens`: what the table's requests ask for. `longer`: asks for more."""
    return (
        honoured("model", ALIAS, _is_alias, note="Required, and another name is a 404, unless `--any-model` is set."),
        honoured("stream", True, is_stream),
        honoured("temperature", 1.8, needs={"seed": 1}),
        honoured("top_p", 0.01, needs=RANDOM),
        honoured("presence_penalty", 2.0, needs=longer),
        honoured("frequency_penalty", 2.0, needs=longer),
        honoured("seed", 2, needs=RANDOM),
        honoured(
            "stop", STOP, _is_cut, needs=ALWAYS_SOME, note="A string, or up to 16 of them; OpenAI and vLLM take 4."
        ),
        honoured("logit_bias", {str(SOME): 100}),
        honoured("top_k", 1, needs=RANDOM),
        honoured("min_p", 1.0, needs=RANDOM),
        honoured("typical_p", 0.01, needs=RANDOM, note="TGI's filter."),
        honoured("repetition_penalty", 2.0),
        honoured("min_tokens", 3, generates(4), needs={**ALWAYS_SOME, "stop_token_ids": [SOME]}),
        honoured("stop_token_ids", [SOME], generates(1), needs=ALWAYS_SOME),
        honoured("include_stop_str_in_output", True, _keeps_stop, needs={**ALWAYS_SOME, "stop": STOP}),
        honoured("ignore_eos", True, generates(max_tokens), needs=ALWAYS_EOS),
        honoured("bad_words", ["1"], _without_one, needs=ALWAYS_SOME),
        honoured("skip_special_tokens", False, _shows_special, needs={"logit_bias": {str(IM_START): 100}}),
        honoured("spaces_between_special_tokens", False, None, note="Few tokenizers write such spaces."),
        honoured("allowed_token_ids", [SOME], _is_all_ones),
        honoured("truncate_prompt_tokens", 5, prompt_of(5), note="-1: as many as leave the answer room."),
        honoured("truncation_side", "right", needs={"truncate_prompt_tokens": 5}),
        honoured("cache_salt", secrets.token_hex(8), _misses_cache),
        honoured("watermark", {"scheme": "green_list", "key": "k"}, note="True, or the mark's settings."),
        honoured("watermarking", True, needs=longer, note="vLLM's name of the switch."),
        honoured("priority", 1, None, setting="--scheduling-policy priority"),
        no_effect("user", "someone"),
        no_effect("session_id", "x"),
        no_effect("stream_interval", 5),
        no_effect("guided_decoding_backend", "xgrammar"),
        refused("guided_whitespace_pattern", " "),
        refused("use_beam_search", True),
        refused("length_penalty", 0.5),
        refused("early_stopping", True),
        refused("repetition_detection", {"max_pattern_size": 3}),
        refused("logprob_token_ids", [SOME]),
        refused("logits_processors", ["x"]),
        refused("vllm_xargs", {"x": 1}),
        refused("kv_transfer_params", {}),
        refused("ec_transfer_params", {}),
        refused("mm_processor_kwargs", {"x": 1}),
        refused("media_io_kwargs", {"x": {}}),
        refused("return_token_offsets", True),
        refused("return_mm_kwargs", False),
        refused("routed_experts_prompt_start", 1),
    )


FROM_SGLANG: Mapping[str, tuple[Any, str]] = {
    "rid": ("x", "Send `request_id`, or the header `X-Request-Id`."),
    "extra_key": ("x", "Send `cache_salt`."),
}

OF_PLATFORM: tuple[Row, ...] = (
    no_effect("service_tier", "flex"),
    no_effect("safety_identifier", "x"),
    no_effect("prompt_cache_key", "x"),
    no_effect("prompt_cache_retention", "24h"),
    no_effect("prompt_cache_options", {"mode": "explicit"}),
)

# --- /v1/chat/completions and /v1/completions -------------------------------------------------------------------------

STREAM = {"stream": True}


def _tells_usage(told: Answer, plain: Answer) -> bool:
    return "completion_tokens" in (told.events[-1]["usage"] or {}) and not plain.events[-1].get("usage")


def _counts_up(told: Answer, plain: Answer) -> bool:
    counts = [event["usage"]["completion_tokens"] for event in told.events]
    return counts == sorted(counts) and counts[-1] > counts[0] and not any(event.get("usage") for event in plain.events)


def _two_choices(told: Answer, plain: Answer) -> bool:
    return len(told.choices) == 2 != len(plain.choices)


def _has_token_ids(told: Answer, plain: Answer) -> bool:
    counts = len(told.choices[0]["token_ids"]) == told.num_generated
    return counts and "prompt_token_ids" in told.body and "token_ids" not in plain.body


def _names_by_id(told: Answer, plain: Answer) -> bool:
    return told.body.count('"token_id:') >= told.num_generated and "token_id:" not in plain.body


def _has_id(told: Answer, plain: Answer) -> bool:
    return told.json["id"].endswith("-my-1") and not plain.json["id"].endswith("-my-1")


def _has_prompt_logprobs(told: Answer, plain: Answer) -> bool:
    return '"prompt_logprobs":[null,{' in told.body and "prompt_logprobs" not in plain.body


def _is_object(told: Answer, plain: Answer) -> bool:
    return told.text.lstrip().startswith("{") and "{" not in plain.text


_FORM = "structured_outputs."
STRUCTURED_OUTPUTS = (
    honoured(_FORM + "json", {"const": "xyz"}, says('"xyz"'), note="A schema, or its text."),
    honoured(_FORM + "regex", "xyz", says("xyz")),
    honoured(_FORM + "choice", ["xyz"], says("xyz")),
    honoured(_FORM + "grammar", 'root ::= "xyz"', says("xyz"), note="GBNF, or Lark as llguidance reads it."),
    honoured(_FORM + "json_object", True, _is_object),
    no_effect(_FORM + "disable_fallback", True, needs={_FORM + "choice": ["xyz"]}),
    refused(_FORM + "structural_tag", "{}"),
    refused(_FORM + "whitespace_pattern", " "),
    refused(_FORM + "disable_any_whitespace", True),
    refused(_FORM + "disable_additional_properties", True),
)


def generation_rows(max_tokens: int, logprobs: bool | int) -> tuple[Row, ...]:
    """Of the two routes that have choices. `logprobs`: how a route is asked for those of the chosen tokens alone."""
    return (
        *sampling_rows(max_tokens, {"max_tokens": 40, "ignore_eos": True}),
        honoured("n", 2, _two_choices),
        honoured("stream_options.include_usage", True, _tells_usage, needs=STREAM),
        honoured("stream_options.continuous_usage_stats", True, _counts_up, needs=STREAM),
        refused("stream_options.include_obfuscation", True, needs=STREAM),
        honoured("max_tokens", 3, generates(3)),
        honoured("prompt_logprobs", 2, _has_prompt_logprobs),
        honoured("return_token_ids", True, _has_token_ids),
        honoured("return_tokens_as_token_ids", True, _names_by_id, needs={"logprobs": logprobs}),
        honoured(
            "request_id", "my-1", _has_id, note="A part of the answer's id. The header `X-Request-Id` is for logs."
        ),
        honoured(
            "response_format",
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": "xyz"}}},
            says('"xyz"'),
            note="`text`, `json_object`, `json_schema`; and TGI's `json` and `regex`.",
        ),
        *STRUCTURED_OUTPUTS,
        honoured("guided_json", {"const": "xyz"}, says('"xyz"')),
        honoured("guided_regex", "xyz", says("xyz"), note="vLLM's older name of `structured_outputs.regex`."),
        honoured("guided_choice", ["xyz"], says("xyz"), note="vLLM's older name of `structured_outputs.choice`."),
        honoured(
            "guided_grammar", 'root ::= "xyz"', says("xyz"), note="vLLM's older name of `structured_outputs.grammar`."
        ),
    )
