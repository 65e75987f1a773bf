"""POST /v1/messages: from its JSON to one GenerationRequest, and from events to its answer or its stream.

And POST /v1/messages/count_tokens, which asks how long the same prompt would be.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapters.adapter import Collected
from adapters.anthropic_errors import messages_error_body, messages_error_frame
from adapters.anthropic_types import (
    AnswerBlock,
    CountTokensRequest,
    MessageObject,
    MessagesRequest,
    MessageUsage,
    StopReason,
    TokenCount,
)
from adapters.blocks import Block, Blocks, Step
from adapters.sse import named_frame, to_json
from adapters.watermark import watermark_params
from adapters.wire import parse_body
from engines.api import (
    ChatPrompt,
    Done,
    Finish,
    GenerationEvent,
    GenerationRequest,
    SamplingParams,
    Started,
    TextDelta,
    Tokenized,
    Usage,
)
from engines.errors import GenerationFailed, HeadraceError

SIGNATURE = "unsigned"  # clients want one on what was thought, and send it back


class MessagesAdapter:
    error = staticmethod(messages_error_body)

    def parse(self, body: bytes, headers: Mapping[str, str], request_id: str) -> MessagesExchange:  # noqa: ARG002
        request = parse_body(MessagesRequest, body)
        request.check_combinations()
        return MessagesExchange(request, _generation_request(request, request_id))


def _generation_request(request: MessagesRequest, request_id: str) -> GenerationRequest:
    return GenerationRequest(
        request_id=request_id,
        model=request.model,
        prompt=request.chat_prompt(),
        sampling=SamplingParams(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            stop=tuple(request.stop_sequences or ()),
            watermark=watermark_params(request.watermark),
        ),
        structured_output=request.structured_output(),
        tool_choice=request.chosen(),
        thinking_budget=request.thinking_budget,
        stream=bool(request.stream),
    )


class MessagesExchange:
    """One request and the words for its answer. A single GenerationRequest, so `request_index` is always 0."""

    def __init__(self, request: MessagesRequest, generation: GenerationRequest) -> None:
        self.requests: Sequence[GenerationRequest] = (generation,)
        self.stream = bool(request.stream)
        self._id = f"msg_{secrets.token_hex(12)}"
        self._model = request.model
        self._blocks = Blocks()  # of a stream, so far

    # --- streamed -----------------------------------------------------------------------------------------------------

    def frame(self, request_index: int, event: GenerationEvent) -> bytes:  # noqa: ARG002
        if isinstance(event, TextDelta):
            frames = [_step_frame(step) for step in self._blocks.add(event)]
            return b"".join(frames)
        if isinstance(event, Started):
            begun = Usage(prompt_tokens=event.prompt_tokens, completion_tokens=0, cached_tokens=event.cached_tokens)
            start = named_frame("message_start", {"type": "message_start", "message": self._message([], None, begun)})
            return start + named_frame("ping", {"type": "ping"})
        return self._ended(event)

    def _ended(self, event: Done) -> bytes:
        frames = [_step_frame(step) for step in self._blocks.end()]
        finish = self._blocks.finish
        if _is_given_up(finish):
            return b"".join(frames) + self.stream_error(GenerationFailed("The generation was aborted."), 500)
        reason, sequence = _stop(finish)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        frames.append(
            named_frame("message_delta", {"type": "message_delta", "delta": delta, "usage": _usage(event.usage)})
        )
        frames.append(named_frame("message_stop", {"type": "message_stop"}))
        return b"".join(frames)

    def end(self) -> bytes:
        return b""

    def stream_error(self, error: HeadraceError, status: int) -> bytes:
        return messages_error_frame(error, status)

    # --- whole --------------------------------------------------------------------------------------------------------

    def response(self, collected: Sequence[Collected]) -> bytes:
        """Raises GenerationFailed for an answer that the engine gave up."""
        (whole,) = collected
        blocks = Blocks.of(whole.choices[0].deltas)
        if _is_given_up(blocks.finish):
            raise GenerationFailed("The generation was aborted.")
        return to_json(self._message([_answer_block(block) for block in blocks.all], blocks.finish, whole.usage))

    def _message(self, content: list[AnswerBlock], finish: Finish | None, usage: Usage) -> MessageObject:
        reason, sequence = _stop(finish)
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": _usage(usage),
        }


def _is_given_up(finish: Finish | None) -> bool:
    return finish is None or finish.reason == "abort"


def _stop(finish: Finish | None) -> tuple[StopReason | None, str | None]:
    """Why the answer ended, and which of the client's sequences ended it."""
    if finish is None:
        return None, None
    if isinstance(finish.matched, str):
        return "stop_sequence", finish.matched
    if finish.reason == "tool_calls":
        return "tool_use", None
    return ("end_turn" if finish.reason == "stop" else "max_tokens"), None


def _usage(usage: Usage) -> MessageUsage:
    """Writing to the prefix cache costs nothing here, so no token is counted as its creation."""
    told: MessageUsage = {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
    }
    if usage.reasoning_tokens:
        told["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return told


# --- blocks -----------------------------------------------------------------------------------------------------------


def _answer_block(block: Block) -> AnswerBlock:
    if block.kind == "text":
        return {"type": "text", "text": block.text}
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": SIGNATURE}
    return {"type": "tool_use", "id": block.id, "name": block.name, "input": _input(block.text)}


def _input(arguments: str) -> dict[str, Any]:
    """A call's input must be an object; what the model wrote instead, or did not finish, stands in one."""
    try:
        value: Any = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"invalid_json": arguments}  # pyright: ignore[reportUnknownVariableType]


_EMPTY: dict[str, dict[str, Any]] = {
    "text": {"type": "text", "text": ""},
    "reasoning": {"type": "thinking", "thinking": "", "signature": ""},
}
_DELTAS = {
    "text": b'{"type":"text_delta","text":',
    "reasoning": b'{"type":"thinking_delta","thinking":',
    "call": b'{"type":"input_json_delta","partial_json":',
}


def _step_frame(step: Step) -> bytes:
    block = step.block
    if step.kind == "grew":
        if not step.piece:
            return b""
        return b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":%s%s}}\n\n' % (
            block.index,
            _DELTAS[block.kind],
            to_json(step.piece),
        )
    if step.kind == "opened":
        empty = _EMPTY.get(block.kind) or {"type": "tool_use", "id": block.id, "name": block.name, "input": {}}
        start = {"type": "content_block_start", "index": block.index, "content_block": empty}
        return named_frame("content_block_start", start)
    stop = named_frame("content_block_stop", {"type": "content_block_stop", "index": block.index})
    if block.kind != "reasoning":
        return stop
    signed = {"type": "signature_delta", "signature": SIGNATURE}
    return (
        named_frame("content_block_delta", {"type": "content_block_delta", "index": block.index, "delta": signed})
        + stop
    )


# --- counting ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CountCall:
    model: str
    prompt: ChatPrompt


def parse_count(body: bytes) -> CountCall:
    """Raises InvalidRequest."""
    request = parse_body(CountTokensRequest, body)
    request.check_combinations()
    return CountCall(request.model, request.chat_prompt())


def count_body(tokenized: Tokenized) -> bytes:
    answer: TokenCount = {"input_tokens": len(tokenized.token_ids)}
    return to_json(answer)
