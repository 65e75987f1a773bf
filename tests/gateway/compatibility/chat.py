"""The fields of POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from adapters.openai_chat_types import ChatCompletionRequest
from tests.gateway.compatibility.rows import (
    Answer,
    Table,
    generates,
    honoured,
    longer_prompt,
    no_effect,
    refused,
    unknown,
)
from tests.gateway.compatibility.sampling import FROM_SGLANG, MODEL, OF_PLATFORM, STOPS_AFTER_SIX, generation_rows

MAX_TOKENS = 6
USER = {"role": "user", "content": "Count from one to ten in words, separated by commas."}
THINKING = {"chat_template_kwargs": {"enable_thinking": True}, "max_tokens": 20}


def function(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {}, "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def _called(answer: Answer) -> list[str]:
    return [call["function"]["name"] for call in answer.message.get("tool_calls", [])]


def _is_called(told: Answer, plain: Answer) -> bool:
    return _called(told)[:1] == ["go"] and "go" not in _called(plain)


def _one_call(told: Answer, plain: Answer) -> bool:
    return len(_called(told)) == 1 and told.num_generated < plain.num_generated  # which goes on to another call


def _has_logprobs(told: Answer, plain: Answer) -> bool:
    return len(told.choices[0]["logprobs"]["content"]) == told.num_generated and not plain.choices[0]["logprobs"]


def _has_alternatives(told: Answer, plain: Answer) -> bool:
    counts = [
        {len(token["top_logprobs"]) for token in answer.choices[0]["logprobs"]["content"]} for answer in (told, plain)
    ]
    return counts == [{2}, {0}]


def _thinks_less(told: Answer, plain: Answer) -> bool:
    return told.num_reasoning < plain.num_reasoning


def _tells_no_reasoning(told: Answer, plain: Answer) -> bool:
    return "reasoning" not in told.message and bool(plain.message["reasoning"])


def _shorter_prompt(told: Answer, plain: Answer) -> bool:
    return told.num_prompt < plain.num_prompt


def _has_prompt_text(told: Answer, plain: Answer) -> bool:
    return USER["content"] in told.json["prompt_text"] and "prompt_text" not in plain.json


OTHER_TEMPLATE = "Another template, which says a bit more: {{ messages[0].content }} And that is what was to be said."
TRUSTING = "--trust-request-chat-template"
TOOLS = {"tools": [function("go")]}
CALLED = {**TOOLS, "tool_choice": "required", "max_tokens": 40}

ROWS = (
    honoured("messages", [{"role": "user", "content": "Name a river."}]),
    *generation_rows(MAX_TOKENS, True),
    honoured("max_completion_tokens", 5, generates(5), needs={**STOPS_AFTER_SIX, "max_tokens": None}),
    honoured("logprobs", True, _has_logprobs),
    honoured("top_logprobs", 2, _has_alternatives, needs={"logprobs": True}),
    honoured("tools", [function("go")], longer_prompt, note="Functions; no setting is needed to turn them on."),
    honoured("tool_choice", "required", _is_called, needs={**TOOLS, "max_tokens": 40}),
    honoured("parallel_tool_calls", False, _one_call, needs={**CALLED, "logit_bias": {"2": -100}}),
    honoured("reasoning_effort", "low", longer_prompt, note="Goes to the chat template, as does `enable_thinking`."),
    honoured("thinking_token_budget", 2, _thinks_less, needs=THINKING),
    honoured("include_reasoning", False, _tells_no_reasoning, needs=THINKING),
    honoured("add_generation_prompt", False, _shorter_prompt),
    honoured(
        "continue_final_message",
        True,
        _shorter_prompt,
        needs={"messages": [USER, {"role": "assistant", "content": "One, two,"}]},
    ),
    honoured("chat_template_kwargs", {"shown": "x"}, longer_prompt),
    honoured("documents", [{"title": "x", "text": "y"}], longer_prompt, note="Where the chat template reads them."),
    honoured("chat_template", OTHER_TEMPLATE, longer_prompt, setting=TRUSTING),
    honoured("return_prompt_text", True, _has_prompt_text),
    honoured("add_special_tokens", True, longer_prompt),
    *OF_PLATFORM,
    no_effect("metadata", {"a": "b"}),
    no_effect("store", True),
    no_effect("tool_prompt", "Use tools."),
    refused("best_of", 2),
    refused("echo", True),
    refused("functions", [{"name": "f"}]),
    refused("function_call", {"name": "f"}),
    refused("modalities", ["text", "audio"]),
    refused("audio", {"voice": "v", "format": "wav"}),
    refused("prediction", {"type": "content", "content": "x"}),
    refused("web_search_options", {}),
    refused("moderation", {"model": "m"}),
    refused("verbosity", "high"),
    *unknown(
        {
            **FROM_SGLANG,
            "regex": ("x+", "Send `structured_outputs.regex`."),
            "ebnf": ("root ::= x", "Send `structured_outputs.grammar`."),
            "no_stop_trim": (True, "Send `include_stop_str_in_output`."),
            "stop_regex": ("x+", "Send `stop` with the texts; expressions do not end an answer."),
            "lora_path": ("x", "There are no adapters here."),
            "session_params": ({}, "Send the whole conversation; its prefix is in the cache."),
            "custom_logit_processor": ("x", "Code that clients send is not run."),
            "custom_params": ({}, "Code that clients send is not run."),
            "return_hidden_states": (True, "Hidden states are not told."),
            "return_cached_tokens_details": (True, "`usage.prompt_tokens_details` is always told."),
            "return_prompt_token_ids": (True, "Send `return_token_ids`."),
            "separate_reasoning": (False, "Reasoning is always told apart; `--reasoning-parser none` is the server's."),
            "stream_reasoning": (False, "Reasoning is streamed as it comes."),
            "input_ids": ([1], "`/v1/completions` takes token ids."),
        }
    ),
)

VLLM = {
    "honoured": """messages model frequency_penalty logit_bias logprobs top_logprobs max_tokens max_completion_tokens n
        presence_penalty response_format seed stop stream stream_options temperature top_p reasoning_effort
        thinking_token_budget include_reasoning parallel_tool_calls use_beam_search top_k min_p repetition_penalty
        watermarking length_penalty stop_token_ids include_stop_str_in_output ignore_eos min_tokens skip_special_tokens
        spaces_between_special_tokens truncate_prompt_tokens truncation_side prompt_logprobs logprob_token_ids
        allowed_token_ids bad_words echo add_generation_prompt continue_final_message add_special_tokens documents
        chat_template_kwargs media_io_kwargs mm_processor_kwargs structured_outputs request_id session_id
        return_tokens_as_token_ids return_token_ids return_prompt_text cache_salt kv_transfer_params ec_transfer_params
        vllm_xargs repetition_detection stream_interval""",
    "if enabled": "tools tool_choice priority chat_template routed_experts_prompt_start",
    "ignored": "stream_options.include_obfuscation",
}
SGLANG = {
    "honoured": """messages model frequency_penalty logit_bias logprobs top_logprobs max_tokens max_completion_tokens n
        presence_penalty response_format seed stop stream stream_options temperature top_p parallel_tool_calls
        reasoning_effort return_token_ids top_k min_p min_tokens repetition_penalty stop_token_ids ignore_eos
        continue_final_message skip_special_tokens chat_template_kwargs cache_salt rid extra_key regex ebnf no_stop_trim
        stop_regex session_params return_prompt_token_ids separate_reasoning stream_reasoning input_ids
        return_cached_tokens_details""",
    "if enabled": """tools tool_choice priority watermark lora_path custom_logit_processor custom_params
        return_hidden_states""",
    "ignored": "stream_options.include_obfuscation",
}
TGI = {
    "honoured": """messages model frequency_penalty logprobs top_logprobs max_tokens max_completion_tokens stop stream
        seed temperature top_p tools tool_choice tool_prompt response_format stream_options.include_usage""",
    "refused": "logit_bias",
    "another meaning": "presence_penalty",
    "ignored": "stream_options",
}

CHAT = Table(
    path="/v1/chat/completions",
    body={"model": MODEL, "messages": [USER], "max_tokens": MAX_TOKENS, "temperature": 0},
    model=ChatCompletionRequest,
    rows=ROWS,
    peers={"vLLM": VLLM, "SGLang": SGLANG, "TGI": TGI},
)
