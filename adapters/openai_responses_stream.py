"""The events of a Responses stream, numbered, each under its own name and in the order that clients rely on.

created, in_progress, then for every item: output_item.added, its content's events, output_item.done; last completed,
incomplete or failed. A piece of text alone is a few byte strings joined; only the text is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adapters.blocks import Block, Step
from adapters.openai_logprobs import ChatTokenLogprob, chat_logprobs
from adapters.openai_responses_answer import (
    EventLogprob,
    ItemStatus,
    OutputItem,
    OutputTextPart,
    ReasoningPart,
    ResponseObject,
)
from adapters.sse import named_frame, to_json
from engines.api import TokenLogprob

_NAMES = {"text": "output_text", "reasoning": "reasoning_text", "call": "function_call_arguments"}
_PREFIXES = {"text": "msg", "reasoning": "rs", "call": "fc"}


class Items:
    """Blocks as items. `suffix` makes their ids this response's own; `num_top`: alternatives told beside a token."""

    def __init__(self, suffix: str, num_top: int) -> None:
        self._suffix = suffix
        self._num_top = num_top

    def id_of(self, block: Block) -> str:
        return f"{_PREFIXES[block.kind]}_{self._suffix}_{block.index}"

    def item(self, block: Block, status: ItemStatus) -> OutputItem:
        """An item in progress has no content yet."""
        has_content = status != "in_progress"
        if block.kind == "text":
            content = [self.text_part(block)] if has_content else []
            return {
                "id": self.id_of(block),
                "type": "message",
                "role": "assistant",
                "status": status,
                "content": content,
            }
        if block.kind == "reasoning":
            thoughts = [self.reasoning_part(block)] if has_content else []
            return {
                "id": self.id_of(block),
                "type": "reasoning",
                "summary": [],
                "content": thoughts,
                "status": status,
            }
        return {
            "id": self.id_of(block),
            "type": "function_call",
            "call_id": block.id,
            "name": block.name,
            "arguments": block.text,
            "status": status,
        }

    def text_part(self, block: Block) -> OutputTextPart:
        logprobs = self.logprobs(block.logprobs)
        return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": logprobs}

    def reasoning_part(self, block: Block) -> ReasoningPart:
        return {"type": "reasoning_text", "text": block.text}

    def part(self, block: Block) -> OutputTextPart | ReasoningPart:
        return self.text_part(block) if block.kind == "text" else self.reasoning_part(block)

    def logprobs(self, tokens: Sequence[TokenLogprob]) -> list[ChatTokenLogprob]:
        return chat_logprobs(tokens, self._num_top)["content"]

    def event_logprobs(self, tokens: Sequence[TokenLogprob]) -> list[EventLogprob]:
        return [
            {
                "token": token["token"],
                "logprob": token["logprob"],
                "top_logprobs": [{"token": top["token"], "logprob": top["logprob"]} for top in token["top_logprobs"]],
            }
            for token in self.logprobs(tokens)
        ]


class EventStream:
    """Renders one response's events."""

    def __init__(self, items: Items) -> None:
        self._items = items
        self._num_events = 0
        self._before_text = b""  # of a delta of the open block, up to the text

    def state(self, kind: str, response: ResponseObject) -> bytes:
        """`response.created` and its kin, which tell the response as it is then."""
        return self._event(f"response.{kind}", {"response": response})

    def step(self, step: Step, status: ItemStatus) -> bytes:
        """`status` is what becomes of a block that closes."""
        if step.kind == "grew":
            return self._grown(step)
        return self._opened(step.block) if step.kind == "opened" else self._closed(step.block, status)

    def _opened(self, block: Block) -> bytes:
        kind = f"response.{_NAMES[block.kind]}.delta"
        place = to_json({"type": kind, **self._place(block)})[:-1]
        self._before_text = b"event: %s\ndata: %s" % (kind.encode(), place)
        added = self._event(
            "response.output_item.added",
            {"output_index": block.index, "item": self._items.item(block, "in_progress")},
        )
        if block.kind == "call":
            return added
        return added + self._event(
            "response.content_part.added", {**self._place(block), "part": self._items.part(block)}
        )

    def _grown(self, step: Step) -> bytes:
        logprobs = b""
        if step.block.kind == "text":
            tokens = self._items.event_logprobs(step.logprobs)
            logprobs = b',"logprobs":' + (to_json(tokens) if tokens else b"[]")
        number = b',"sequence_number":%d}\n\n' % self._next()
        return b"".join((self._before_text, b',"delta":', to_json(step.piece), logprobs, number))

    def _closed(self, block: Block, status: ItemStatus) -> bytes:
        place = self._place(block)
        item = {"output_index": block.index, "item": self._items.item(block, status)}
        if block.kind == "call":
            said = self._event("response.function_call_arguments.done", {**place, "arguments": block.text})
            return said + self._event("response.output_item.done", item)
        whole: dict[str, Any] = {**place, "text": block.text}
        if block.kind == "text":
            whole["logprobs"] = self._items.event_logprobs(block.logprobs)
        return b"".join(
            (
                self._event(f"response.{_NAMES[block.kind]}.done", whole),
                self._event("response.content_part.done", {**place, "part": self._items.part(block)}),
                self._event("response.output_item.done", item),
            )
        )

    def _place(self, block: Block) -> dict[str, Any]:
        place: dict[str, Any] = {"item_id": self._items.id_of(block), "output_index": block.index}
        return place if block.kind == "call" else {**place, "content_index": 0}

    def _event(self, kind: str, members: Mapping[str, Any]) -> bytes:
        return named_frame(kind, {"type": kind, **members, "sequence_number": self._next()})

    def _next(self) -> int:
        self._num_events += 1
        return self._num_events - 1
