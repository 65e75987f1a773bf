"""The fields of POST /v1/responses."""

from __future__ import annotations

from typing import Any

import httpx

from adapters.openai_responses_types import ResponsesRequest
from tests.gateway.compatibility.chat import USER
from tests.gateway.compatibility.rows import (
    Answer,
    Row,
    Table,
    generates,
    honoured,
    longer_prompt,
    no_effect,
    probed,
    refused,
    says,
    unknown,
)
from tests.gateway.compatibility.sampling import FROM_SGLANG, MODEL, OF_PLATFORM, STRUCTURED_OUTPUTS, sampling_rows

MAX_TOKENS = 6
BODY = {"model": MODEL, "input": [USER], "max_output_tokens": MAX_TOKENS, "temperature": 0}
FUNCTION = {"type": "function", "name": "go", "parameters": {"type": "object", "additionalProperties": False}}
TOOLS = {"tools": [FUNCTION]}
THINKING = {"chat_template_kwargs": {"enable_thinking": True}, "max_output_tokens": 20}
LOGPROBS = {"include": ["message.output_text.logprobs"]}


def _num_calls(answer: Answer) -> int:
    return sum(item["type"] == "function_call" and item["name"] == "go" for item in answer.json["output"])


def _is_called(told: Answer, plain: Answer) -> bool:
    return _num_calls(told) > 0 == _num_calls(plain)


def _one_call(told: Answer, plain: Answer) -> bool:
    return _num_calls(told) == 1 and told.num_generated < plain.num_generated  # which goes on to another call


def _logprobs(answer: Answer) -> list[Any]:
    return answer.json["output"][0]["content"][0].get("logprobs") or []


def _has_logprobs(told: Answer, plain: Answer) -> bool:
    return len(_logprobs(told)) == told.num_generated and not _logprobs(plain)


def _has_alternatives(told: Answer, plain: Answer) -> bool:
    counts = [{len(token["top_logprobs"]) for token in _logprobs(answer)} for answer in (told, plain)]
    return counts == [{2}, {0}]


def _thinks_less(told: Answer, plain: Answer) -> bool:
    return told.num_reasoning < plain.num_reasoning


def _has_labels(told: Answer, plain: Answer) -> bool:
    return (told.json["metadata"], plain.json["metadata"]) == ({"a": "b"}, {})


def _goes_on(client: httpx.Client) -> bool:
    first = _asked(client)
    second = _asked(client, previous_response_id=first["id"])
    return second["usage"]["input_tokens"] > first["usage"]["input_tokens"]


def _is_not_kept(client: httpx.Client) -> bool:
    kept, forgotten = _asked(client), _asked(client, store=False)
    return [client.get(f"/v1/responses/{answer['id']}").status_code for answer in (kept, forgotten)] == [200, 404]


def _asked(client: httpx.Client, **fields: object) -> dict[str, Any]:
    return client.post("/v1/responses", json=BODY | fields).json()


ROWS: tuple[Row, ...] = (
    honoured("input", "Name a river.", note="A text, or items; images, files, audio and references are refused."),
    *sampling_rows(MAX_TOKENS, {"max_output_tokens": 40, "ignore_eos": True}),
    honoured("instructions", "Be brief.", longer_prompt),
    honoured("max_output_tokens", 3, generates(3)),
    probed("previous_response_id", _goes_on, note="Of an answer that was stored."),
    probed("store", _is_not_kept, note="Answers are kept unless it is false."),
    honoured("metadata", {"a": "b"}, _has_labels),
    honoured("text.format", {"type": "json_schema", "name": "a", "schema": {"const": "xyz"}}, says('"xyz"')),
    refused("text.verbosity", "high"),
    honoured("reasoning.effort", "low", longer_prompt),
    no_effect("reasoning.summary", "auto"),
    no_effect("reasoning.generate_summary", "auto"),
    no_effect("reasoning.context", "auto"),
    refused("reasoning.mode", "pro"),
    honoured("tools", [FUNCTION], longer_prompt, note="Functions; OpenAI's own tools are refused."),
    honoured("tool_choice", "required", _is_called, needs={**TOOLS, "max_output_tokens": 40}),
    honoured(
        "parallel_tool_calls",
        False,
        _one_call,
        needs={**TOOLS, "tool_choice": "required", "max_output_tokens": 40, "logit_bias": {"2": -100}},
    ),
    honoured(
        "include", LOGPROBS["include"], _has_logprobs, note="Log-probabilities; and `reasoning.encrypted_content`."
    ),
    honoured("top_logprobs", 2, _has_alternatives, needs=LOGPROBS),
    *STRUCTURED_OUTPUTS,
    honoured("chat_template_kwargs", {"shown": "x"}, longer_prompt),
    honoured("thinking_token_budget", 2, _thinks_less, needs=THINKING),
    *OF_PLATFORM,
    no_effect("max_tool_calls", 3),
    refused("stream_options.include_obfuscation", True, needs={"stream": True}),
    refused("request_id", "x"),
    refused("background", True),
    refused("background_options", {}),
    refused("conversation", "conv_1"),
    refused("context_management", [{"type": "compaction"}]),
    refused("prompt", {"id": "p"}),
    refused("truncation", "auto"),
    refused("moderation", {"model": "m"}),
    refused("image", {}),
    refused("access_programs", {}),
    *unknown(
        {
            "enable_response_messages": (True, "`return_prompt_text` of chat completions tells what the model reads."),
            "previous_input_messages": ([{}], "Send them as items of `input`."),
            "previous_response": ({}, "Send its items as `input`."),
            **FROM_SGLANG,
        }
    ),
)

VLLM = {
    "honoured": """background include input instructions max_output_tokens max_tool_calls metadata model logit_bias
        parallel_tool_calls reasoning temperature text tool_choice tools stream top_logprobs top_p top_k truncation
        skip_special_tokens include_stop_str_in_output cache_salt repetition_penalty seed stop ignore_eos
        structured_outputs request_id mm_processor_kwargs vllm_xargs previous_response previous_input_messages
        enable_response_messages""",
    "if enabled": "previous_response_id store priority",
    "refused": "prompt",
}
SGLANG = {
    "honoured": """input instructions max_output_tokens model reasoning temperature text tool_choice tools stream top_p
        chat_template_kwargs request_id session_id cache_salt extra_key frequency_penalty presence_penalty stop top_k
        min_p repetition_penalty""",
    "if enabled": "previous_response_id store priority",
    "": "background include max_tool_calls metadata parallel_tool_calls top_logprobs truncation",
}

RESPONSES = Table(
    path="/v1/responses",
    body=BODY,
    model=ResponsesRequest,
    rows=ROWS,
    peers={"vLLM": VLLM, "SGLang": SGLANG},
)
