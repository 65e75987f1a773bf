"""One choice's text, told apart into reasoning, answer and tool calls. Knows no tokens and no sockets."""

from __future__ import annotations

from dataclasses import dataclass

from engines.api import ToolCallDelta
from engines.native.thinking import ThinkingReader
from engines.native.tools.calls import CallReader
from engines.native.tools.repeats import Repeats


@dataclass(slots=True)
class Said:
    """What has become certain and is not yet told."""

    reasoning: str = ""
    text: str = ""
    calls: tuple[ToolCallDelta, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.text or self.calls)


class AnswerText:
    """`thinking` and `calls` are what reads reasoning and tool calls, None where there are none to be read.

    `single_call`: calls after the first are dropped. `only_calls`: so is text, which can only be the beginning of a
    call that tokens did not last for, and the answer ends at a call that repeats an earlier one.
    """

    def __init__(
        self,
        thinking: ThinkingReader | None,
        calls: CallReader | None,
        *,
        single_call: bool = False,
        only_calls: bool = False,
    ) -> None:
        self._thinking = thinking
        self._calls = calls
        self._single_call = single_call
        self._only_calls = only_calls
        self._repeats = Repeats() if only_calls else None
        self._said = Said()
        self.num_calls = 0

    @property
    def is_thinking(self) -> bool:
        return self._thinking is not None and self._thinking.is_thinking

    @property
    def is_over(self) -> bool:
        """Whatever the model still writes is not told."""
        return self._repeats is not None and self._repeats.found

    @property
    def has_news(self) -> bool:
        return bool(self._said)

    def push(self, text: str) -> None:
        if self._thinking is not None:
            reasoning, text = self._thinking.push(text)
            self._said.reasoning += reasoning
        self._push_answer(text)

    def finish(self) -> None:
        if self._thinking is not None:
            reasoning, text = self._thinking.finish()
            self._said.reasoning += reasoning
            self._push_answer(text)
        if self._calls is not None:
            self._take(self._calls.finish())

    def take(self) -> Said:
        said, self._said = self._said, Said()
        return said

    def _push_answer(self, text: str) -> None:
        if self._calls is None:
            self._said.text += text
        elif text:
            self._take(self._calls.push(text))

    def _take(self, pieces: list[str | ToolCallDelta]) -> None:
        calls: list[ToolCallDelta] = []
        for piece in pieces:
            if isinstance(piece, str):
                self._said.text += "" if self._only_calls else piece
            elif not (self._single_call and piece.index):
                calls += [piece] if self._repeats is None else self._repeats.push(piece)
        self.num_calls = max([self.num_calls, *(call.index + 1 for call in calls)])
        self._said.calls += merged(calls)


def merged(calls: list[ToolCallDelta]) -> tuple[ToolCallDelta, ...]:
    """Pieces of one call that are told together, as one piece."""
    joined: list[ToolCallDelta] = []
    for piece in calls:
        if joined and joined[-1].index == piece.index:
            before = joined[-1]
            joined[-1] = ToolCallDelta(piece.index, before.arguments + piece.arguments, before.id, before.name)
        else:
            joined.append(piece)
    return tuple(joined)
