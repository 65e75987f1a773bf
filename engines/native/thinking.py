"""Reasoning in a model's text: `<think>...</think>` before the answer, told apart from it.

Owns the tags, what a prompt says about where its answer begins, and the splitting of a stream. Only the first stretch
of an answer can be reasoning; tags after it are text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from engines.native.tools.calls import held_back

Start = Literal["inside", "maybe", "answer"]
"""Where an answer begins: within reasoning that the prompt opened, where reasoning may begin, or after it."""


@dataclass(frozen=True, slots=True)
class ThinkingTags:
    opening: str
    closing: str

    def start_of(self, prompt: str) -> Start:
        """What a rendered prompt says. Only its very end counts: earlier turns have tags of their own."""
        end = prompt.rstrip()
        if end.endswith(self.opening):
            return "inside"
        return "answer" if end.endswith(self.closing) else "maybe"


TAGS = (ThinkingTags("<think>", "</think>"), ThinkingTags("[THINK]", "[/THINK]"))


def find_tags(template: str) -> ThinkingTags | None:
    """The tags that a chat template writes or cuts; None for a model that does not reason in tags."""
    return next((tags for tags in TAGS if tags.closing in template), None)


class Parts(NamedTuple):
    reasoning: str
    text: str


class ThinkingReader:
    """Splits one answer's text into reasoning and answer, the same however it is cut into pushes.

    The blanks around reasoning belong to the tags: they are left out.
    """

    def __init__(self, tags: ThinkingTags, start: Start) -> None:
        self._tags = tags
        self._state: Start = start
        self._buffer = ""
        self._skips_blanks = start != "answer"

    @property
    def is_thinking(self) -> bool:
        return self._state == "inside"

    def push(self, text: str) -> Parts:
        if self._state == "answer" and not self._skips_blanks:
            return Parts("", text)
        self._buffer += text
        if self._state == "maybe":
            self._look_for_opening()
        reasoning = self._read_reasoning() if self._state == "inside" else ""
        return Parts(reasoning, self._read_answer() if self._state == "answer" else "")

    def finish(self) -> Parts:
        buffer, self._buffer = self._buffer, ""
        if self._state == "inside":
            return Parts(buffer.rstrip(), "")
        return Parts("", buffer if self._state == "maybe" else "")

    def _look_for_opening(self) -> None:
        stripped = self._buffer.lstrip()
        if stripped.startswith(self._tags.opening):
            self._buffer = stripped.removeprefix(self._tags.opening)
            self._state = "inside"
        elif not self._tags.opening.startswith(stripped):
            self._state, self._skips_blanks = "answer", False

    def _read_reasoning(self) -> str:
        if self._skips_blanks:
            self._buffer = self._buffer.lstrip()
            self._skips_blanks = not self._buffer
        end = self._buffer.find(self._tags.closing)
        if end >= 0:
            reasoning = self._buffer[:end].rstrip()
            self._buffer = self._buffer[end + len(self._tags.closing) :]
            self._state, self._skips_blanks = "answer", True
            return reasoning
        kept = self._buffer[: len(self._buffer) - held_back(self._buffer, self._tags.closing)].rstrip()
        self._buffer = self._buffer[len(kept) :]
        return kept

    def _read_answer(self) -> str:
        text = self._buffer.lstrip() if self._skips_blanks else self._buffer
        self._skips_blanks &= not text
        self._buffer = ""
        return text
