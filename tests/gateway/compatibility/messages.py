"""The fields of POST /v1/messages."""

from __future__ import annotations

from adapters.anthropic_types import MessagesRequest
from tests.gateway.compatibility.chat import USER
from tests.gateway.compatibility.rows import (
    OTHERWISE,
    Answer,
    Table,
    generates,
    honoured,
    is_stream,
    no_effect,
    refused,
    unknown,
)
from tests.gateway.compatibility.sampling import ALIAS, MODEL

TOOL = {"name": "go", "input_schema": {"type": "object", "additionalProperties": False}}
HOT = {"temperature": 1.0}  # which has no seed, so what a filter leaves must be certain


def _total(answer: Answer) -> int:
    return answer.count("input_tokens") + answer.count("cache_read_input_tokens")


def _longer_prompt(told: Answer, plain: Answer) -> bool:
    return _total(told) > _total(plain)


def _calls(answer: Answer) -> list[str]:
    return [block["name"] for block in answer.json["content"] if block["type"] == "tool_use"]


def _is_called(told: Answer, plain: Answer) -> bool:
    return _calls(told)[:1] == ["go"] and "go" not in _calls(plain)


def _is_alias(told: Answer, plain: Answer) -> bool:
    return told.json["model"] == ALIAS != plain.json["model"]


def _is_stopped(told: Answer, plain: Answer) -> bool:
    return (told.json["stop_sequence"], plain.json["stop_sequence"]) == (" ", None)


def _thinks(told: Answer, plain: Answer) -> bool:
    kinds = [[block["type"] for block in answer.json["content"]] for answer in (told, plain)]
    return kinds[0][0] == "thinking" and "thinking" not in kinds[1]


def _is_object(told: Answer, plain: Answer) -> bool:
    return told.text == '"xyz"' != plain.text


ROWS = (
    honoured("model", ALIAS, _is_alias),
    honoured("messages", [{"role": "user", "content": "Name a river."}], note="Images and documents are refused."),
    honoured("system", "Be brief.", _longer_prompt),
    honoured("max_tokens", 3, generates(3)),
    honoured("stream", True, is_stream),
    honoured("stop_sequences", [" "], _is_stopped),
    honoured("temperature", 1.0),
    honoured("top_p", 0.001, needs=HOT),
    honoured("top_k", 1, needs=HOT),
    honoured("tools", [TOOL], _longer_prompt, note="Tools of the client's own; Anthropic's are refused."),
    honoured("tool_choice", {"type": "any"}, _is_called, needs={"tools": [TOOL], "max_tokens": 40}),
    honoured("thinking", {"type": "enabled", "budget_tokens": 2}, _thinks),
    honoured("output_config.effort", "low", _longer_prompt),
    honoured("output_config.format", {"type": "json_schema", "schema": {"const": "xyz"}}, _is_object),
    honoured("chat_template_kwargs", {"shown": "x"}, _longer_prompt),
    honoured("watermark", {"scheme": "green_list", "key": "k", "delta": 10.0}, note="True, or the mark's settings."),
    no_effect("cache_control", {"type": "ephemeral"}),
    no_effect("metadata", {"user_id": "x"}),
    no_effect("service_tier", "auto"),
    no_effect("inference_geo", "eu"),
    refused("speed", "fast"),
    refused("user_profile_id", "x"),
    refused("workspace_id", "x"),
    refused("context_management", {"edits": []}),
    refused("mcp_servers", [{"name": "x"}]),
    refused("container", "x"),
    refused("diagnostics", {}),
    refused("thread", {"type": "create"}, note="In beta; the SDK's tool runner then sends conversations whole."),
    *unknown(
        {
            "kv_transfer_params": ({}, "vLLM's; a prompt is computed where it is answered."),
            "compaction": ({}, "In beta with Anthropic, as are the three below; conversations are not compacted."),
            "billing_policy": ("x", "Nothing is billed here."),
            "fallbacks": ([], "Another model is another request."),
            "fallback_credit_token": ("x", "Nothing is billed here."),
        }
    ),
)

VLLM = {
    "honoured": """model messages max_tokens output_config stop_sequences stream system temperature top_k top_p
        chat_template_kwargs kv_transfer_params""",
    "if enabled": "tools tool_choice",
}

SGLANG = {
    "honoured": "model messages max_tokens stop_sequences stream system temperature thinking top_k top_p",
    "if enabled": "tools tool_choice",
    "ignored": "metadata",
    OTHERWISE: "",
}

MESSAGES = Table(
    path="/v1/messages",
    body={"model": MODEL, "messages": [USER], "max_tokens": 20, "temperature": 0},
    model=MessagesRequest,
    rows=ROWS,
    peers={"vLLM": VLLM, "SGLang": SGLANG},
)
