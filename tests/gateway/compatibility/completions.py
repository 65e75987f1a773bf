"""The fields of POST /v1/completions."""

from __future__ import annotations

from adapters.openai_completion_types import CompletionRequest
from tests.gateway.compatibility.rows import Answer, Table, honoured, longer_prompt, refused, unknown
from tests.gateway.compatibility.sampling import FROM_SGLANG, MODEL, RANDOM, generation_rows

MAX_TOKENS = 6
PROMPT = "One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve,"


def _is_echoed(told: Answer, plain: Answer) -> bool:
    return told.text.endswith(PROMPT + plain.text) and not plain.text.startswith(PROMPT)


def _is_best(told: Answer, plain: Answer) -> bool:
    return told.num_generated == 2 * plain.num_generated and len(told.choices) == 1


def _has_logprobs(told: Answer, plain: Answer) -> bool:
    alternatives = told.choices[0]["logprobs"]["top_logprobs"]
    return {len(token) for token in alternatives} <= {2, 3} and plain.choices[0]["logprobs"] is None


def _shorter_prompt(told: Answer, plain: Answer) -> bool:
    return longer_prompt(plain, told)


ROWS = (
    honoured("prompt", "The river", note="A text, token ids, or a list of either."),
    *generation_rows(MAX_TOKENS, 0),
    honoured("best_of", 2, _is_best, needs=RANDOM),
    honoured("echo", True, _is_echoed),
    honoured("logprobs", 2, _has_logprobs),
    honoured("add_special_tokens", False, _shorter_prompt),
    refused("thinking_token_budget", 5),
    refused("prompt_embeds", "x"),
    refused("suffix", "x"),
    *unknown(
        {
            **FROM_SGLANG,
            "regex": ("x+", "Send `structured_outputs.regex`."),
            "ebnf": ("root ::= x", "Send `structured_outputs.grammar`."),
            "json_schema": ("{}", "Send `structured_outputs.json`."),
            "no_stop_trim": (True, "Send `include_stop_str_in_output`."),
            "stop_regex": ("x+", "Send `stop` with the texts; expressions do not end an answer."),
            "lora_path": ("x", "There are no adapters here."),
            "session_params": ({}, "Send the whole conversation; its prefix is in the cache."),
            "custom_logit_processor": ("x", "Code that clients send is not run."),
            "custom_params": ({}, "Code that clients send is not run."),
            "return_hidden_states": (True, "Hidden states are not told."),
            "return_cached_tokens_details": (True, "`usage.prompt_tokens_details` is always told."),
        }
    ),
)

VLLM = {
    "honoured": """model prompt echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop
        stream stream_options temperature top_p use_beam_search top_k min_p repetition_penalty watermarking
        length_penalty stop_token_ids include_stop_str_in_output ignore_eos min_tokens skip_special_tokens
        spaces_between_special_tokens truncate_prompt_tokens truncation_side allowed_token_ids prompt_logprobs
        logprob_token_ids bad_words add_special_tokens response_format structured_outputs request_id session_id
        return_tokens_as_token_ids return_token_ids cache_salt kv_transfer_params ec_transfer_params vllm_xargs
        repetition_detection thinking_token_budget stream_interval""",
    "if enabled": "priority prompt_embeds suffix routed_experts_prompt_start",
    "ignored": "stream_options.include_obfuscation",
}
SGLANG = {
    "honoured": """model prompt echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop
        stream stream_options temperature top_p return_token_ids top_k min_p min_tokens repetition_penalty
        stop_token_ids ignore_eos skip_special_tokens response_format cache_salt rid extra_key regex ebnf json_schema
        no_stop_trim stop_regex session_params return_cached_tokens_details""",
    "if enabled": "priority lora_path custom_logit_processor custom_params return_hidden_states",
    "ignored": "best_of suffix stream_options.include_obfuscation",
}
TGI = {
    "honoured": """model prompt max_tokens temperature top_p stream seed repetition_penalty frequency_penalty stop""",
    "refused": "suffix",
}

COMPLETIONS = Table(
    path="/v1/completions",
    body={"model": MODEL, "prompt": PROMPT, "max_tokens": MAX_TOKENS, "temperature": 0},
    model=CompletionRequest,
    rows=ROWS,
    peers={"vLLM": VLLM, "SGLang": SGLANG, "TGI": TGI},
)
