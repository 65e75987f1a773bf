"""A GenerationRequest as the JSON body of an upstream's /chat/completions or /completions.

Says only what the request says: fields at their defaults are left out, so that the upstream's own defaults apply and an
upstream that knows OpenAI's fields alone is not sent others.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import msgspec

from engines.api import (
    ChatPrompt,
    GenerationRequest,
    Grammar,
    JsonObject,
    JsonSchema,
    OneOf,
    Regex,
    SamplingParams,
    StructuredOutput,
    TextPrompt,
    TokensPrompt,
    ToolChoice,
    WatermarkParams,
)
from engines.errors import UnsupportedByEngine

CHAT_PATH = "/chat/completions"
COMPLETIONS_PATH = "/completions"

# SamplingParams fields that go under their own name when they differ from the default.
_SAME_NAME = (
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "top_k",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "min_tokens",
    "bad_words",
    "allowed_token_ids",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "spaces_between_special_tokens",
)
_DEFAULTS = {name: getattr(SamplingParams(), name) for name in _SAME_NAME}


def path_of(request: GenerationRequest) -> str:
    return CHAT_PATH if isinstance(request.prompt, ChatPrompt) else COMPLETIONS_PATH


def encode_body(request: GenerationRequest, *, model: str, chat_max_tokens_field: str) -> bytes:
    """Raises UnsupportedByEngine for what an upstream's answer could not bring back."""
    _check_expressible(request)
    body: dict[str, Any] = {**request.forwarded, "model": model, **_prompt_fields(request)}
    body |= _sampling_fields(request.sampling)
    is_chat = isinstance(request.prompt, ChatPrompt)
    if request.sampling.max_tokens is not None:
        body[chat_max_tokens_field if is_chat else "max_tokens"] = request.sampling.max_tokens
    if request.sampling.logprobs is not None:
        body |= _chat_logprobs(request.sampling.logprobs) if is_chat else {"logprobs": request.sampling.logprobs}
    if request.structured_output is not None:
        body |= _structured_output(request.structured_output)
    if isinstance(request.prompt, ChatPrompt) and request.prompt.tools:
        body |= {"tools": request.prompt.tools, **_tool_choice(request.tool_choice)}
    if request.thinking_budget is not None:
        body["thinking_token_budget"] = request.thinking_budget
    if request.n != 1:
        body["n"] = request.n
    if request.truncate_prompt_tokens is not None:
        body["truncate_prompt_tokens"] = request.truncate_prompt_tokens
        if request.truncation_side != "left":
            body["truncation_side"] = request.truncation_side
    if request.priority:
        body["priority"] = request.priority
    if request.cache_salt:
        body["cache_salt"] = request.cache_salt
    if request.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return msgspec.json.encode(body)


def _check_expressible(request: GenerationRequest) -> None:
    if request.sampling.prompt_logprobs is not None:
        raise UnsupportedByEngine(
            "A remote engine does not bring back log-probabilities of the prompt "
            "(prompt_logprobs, or echo together with logprobs).",
            field="prompt_logprobs",
        )


def _prompt_fields(request: GenerationRequest) -> dict[str, Any]:
    match request.prompt:
        case TextPrompt(text, add_special_tokens):
            return {"prompt": text} | ({} if add_special_tokens else {"add_special_tokens": False})
        case TokensPrompt(token_ids):
            return {"prompt": token_ids}
        case ChatPrompt() as chat:
            return chat_fields(chat)


def chat_fields(chat: ChatPrompt) -> dict[str, Any]:
    """The conversation, with the template's switches where they are not at their defaults."""
    fields: dict[str, Any] = {"messages": chat.messages}
    if not chat.add_generation_prompt:
        fields["add_generation_prompt"] = False
    if chat.continue_final_message:
        fields["continue_final_message"] = True
    if chat.add_special_tokens:
        fields["add_special_tokens"] = True
    if chat.template is not None:
        fields["chat_template"] = chat.template
    if chat.template_kwargs:
        fields["chat_template_kwargs"] = chat.template_kwargs
    return fields


def _sampling_fields(sampling: SamplingParams) -> dict[str, Any]:
    values = ((name, getattr(sampling, name)) for name in _SAME_NAME)
    fields: dict[str, Any] = {name: value for name, value in values if value != _DEFAULTS[name]}
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token_id): bias for token_id, bias in sampling.logit_bias}
    if sampling.watermark is not None:
        fields["watermark"] = _watermark(sampling.watermark)
    return fields


def _watermark(asked: WatermarkParams | bool) -> bool | dict[str, Any]:
    """In our own shape, which an upstream that does not have it refuses by its name."""
    if isinstance(asked, bool):
        return asked
    return {name: value for name, value in asdict(asked).items() if value is not None}


def _structured_output(output: StructuredOutput) -> dict[str, Any]:
    """OpenAI's field where OpenAI has one, vLLM's for the rest."""
    match output.form:
        case JsonObject():
            return {"response_format": {"type": "json_object"}}
        case JsonSchema(schema, name, strict):
            form: dict[str, Any] = {"name": name, "schema": schema}
            if strict is not None:
                form["strict"] = strict
            return {"response_format": {"type": "json_schema", "json_schema": form}}
        case Regex(pattern):
            return {"structured_outputs": {"regex": pattern}}
        case OneOf(choices):
            return {"structured_outputs": {"choice": choices}}
        case Grammar(text):
            return {"structured_outputs": {"grammar": text}}


def _tool_choice(choice: ToolChoice) -> dict[str, Any]:
    fields: dict[str, Any] = {} if choice.parallel else {"parallel_tool_calls": False}
    match choice.mode:
        case "named":
            return fields | {"tool_choice": {"type": "function", "function": {"name": choice.name}}}
        case "auto":
            return fields
        case mode:
            return fields | {"tool_choice": mode}


def _chat_logprobs(alternatives: int) -> dict[str, Any]:
    return {"logprobs": True} | ({"top_logprobs": alternatives} if alternatives else {})
