"""An answer as the blocks that item-based protocols are made of: reasoning, text, calls of tools, one after the other.

Says where blocks begin, grow and end. How a protocol words that is its own business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from engines.api import Finish, TextDelta, TokenLogprob

BlockKind = Literal["reasoning", "text", "call"]


@dataclass(slots=True)
class Block:
    """`index` counts the blocks of an answer. `id` and `name` are a call's; its text is its arguments."""

    kind: BlockKind
    index: int
    id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list[str])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])  # a text's

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Step(NamedTuple):
    """What happened to a block. `piece` and `logprobs` are what it grew by."""

    kind: Literal["opened", "grew", "closed"]
    block: Block
    piece: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()


class Blocks:
    """Feed every delta of one choice to `add`, then call `end`. Only the last block is ever open."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self.finish: Finish | None = None
        self._open: Block | None = None
        self._held: list[TokenLogprob] = []  # of text that is held back

    @staticmethod
    def of(deltas: Iterable[TextDelta]) -> Blocks:
        """A whole answer's."""
        blocks = Blocks()
        for delta in deltas:
            for _ in blocks.add(delta):
                pass
        for _ in blocks.end():
            pass
        return blocks

    def add(self, delta: TextDelta) -> Iterator[Step]:
        self.finish = delta.finish or self.finish
        if delta.reasoning:
            yield from self._grow("reasoning", delta.reasoning)
        if delta.text:
            logprobs = (*self._held, *delta.logprobs)
            self._held.clear()
            yield from self._grow("text", delta.text, logprobs)
        elif not (delta.reasoning or delta.tool_calls):
            self._held.extend(delta.logprobs)
        for call in delta.tool_calls:
            if call.id is not None or self._open is None or self._open.kind != "call":
                yield from self._close()
                yield self._begin(Block("call", len(self.all), call.id or "", call.name or ""))
            if call.arguments:
                yield from self._grow("call", call.arguments)

    def end(self) -> Iterator[Step]:
        """An answer has at least one block: one that says nothing is an empty text."""
        if not self.all:
            yield self._begin(Block("text", 0))
        if self._held and self._open is not None and self._open.kind == "text":
            yield from self._grow("text", "", tuple(self._held))
        yield from self._close()

    def _grow(self, kind: BlockKind, piece: str, logprobs: tuple[TokenLogprob, ...] = ()) -> Iterator[Step]:
        if self._open is None or self._open.kind != kind:
            yield from self._close()
            yield self._begin(Block(kind, len(self.all)))
        block = self.all[-1]
        block.pieces.append(piece)
        block.logprobs.extend(logprobs)
        yield Step("grew", block, piece, logprobs)

    def _begin(self, block: Block) -> Step:
        self.all.append(block)
        self._open = block
        return Step("opened", block)

    def _close(self) -> Iterator[Step]:
        if self._open is not None:
            block, self._open = self._open, None
            yield Step("closed", block)
