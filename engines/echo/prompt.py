"""A request's prompt to its tokens and to what will be said back; refuses what an engine without a model cannot honour.

A chat is answered with its last user message, any other prompt with itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from engines.api import ChatPrompt, GenerationRequest, Prompt, TextPrompt, TokensPrompt
from engines.echo.tokens import split_tokens, token_text
from engines.errors import PromptTooLong, UnsupportedByEngine


@dataclass(frozen=True, slots=True)
class ReadPrompt:
    """A prompt that can be answered."""

    tokens: Sequence[str]
    answer: str  # what will be said back
    room: int  # tokens that the context still holds


def read_prompt(request: GenerationRequest, max_model_len: int) -> ReadPrompt:
    """Raises UnsupportedByEngine for what no echo can honour, PromptTooLong where the context is too short."""
    sampling = request.sampling
    needs_logprobs = sampling.logprobs is not None and not sampling.logprobs_optional
    if needs_logprobs or sampling.prompt_logprobs is not None:
        field = "logprobs" if needs_logprobs else "prompt_logprobs"
        raise UnsupportedByEngine(f"The echo engine has no distribution, so it cannot honour '{field}'.", field=field)
    if sampling.watermark:
        raise UnsupportedByEngine("The echo engine samples nothing that could be marked.", field="watermark")
    if request.structured_output is not None:
        field = request.structured_output.field
        raise UnsupportedByEngine("The echo engine says what it was told, so it cannot keep to a form.", field=field)
    tokens = tokens_of(request.prompt)
    wanted = 1 if sampling.max_tokens is None else sampling.max_tokens
    if (most := request.truncate_prompt_tokens) is not None:
        most = max(max_model_len - wanted, 1) if most < 0 else most
        tokens = tokens[:most] if request.truncation_side == "right" else tokens[-most:]
    room = max_model_len - len(tokens)
    if room < wanted:
        raise PromptTooLong(
            f"This model's context holds {max_model_len} tokens, but the prompt has {len(tokens)} and the answer asks "
            f"for {wanted}.",
            field="messages" if isinstance(request.prompt, ChatPrompt) else "prompt",
        )
    answer = _last_user_text(request.prompt) if isinstance(request.prompt, ChatPrompt) else "".join(tokens)
    return ReadPrompt(tokens, answer, room)


def tokens_of(prompt: Prompt) -> list[str]:
    """A chat's are those of its turns, one a line. Raises InvalidRequest for ids that stand for nothing."""
    if isinstance(prompt, TokensPrompt):
        return [token_text(token_id) for token_id in prompt.token_ids]
    return split_tokens(_render(prompt))


def _render(prompt: TextPrompt | ChatPrompt) -> str:
    if isinstance(prompt, TextPrompt):
        return prompt.text
    turns = [f"{message['role']}: {_content_text(message.get('content'))}" for message in prompt.messages]
    if prompt.add_generation_prompt and not prompt.continue_final_message:
        turns.append("assistant:")
    return "\n".join(turns)


def _last_user_text(prompt: ChatPrompt) -> str:
    if prompt.template is not None:
        raise UnsupportedByEngine("The echo engine has no use for a chat template.", field="chat_template")
    if prompt.tools:
        raise UnsupportedByEngine("The echo engine cannot call tools.", field="tools")
    users = [message for message in prompt.messages if message["role"] == "user"]
    return _content_text((users or prompt.messages)[-1].get("content"))


def _content_text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    parts: Iterable[Any] = content
    for part in parts:
        if part["type"] != "text":
            raise UnsupportedByEngine(f"The echo engine reads text, not '{part['type']}'.", field="messages")
    return "".join(part["text"] for part in parts)
