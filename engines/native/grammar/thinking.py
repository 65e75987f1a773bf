"""Reasoning before a constrained answer, followed by token: a grammar waits for its end, a budget brings it about.

maybe ──opening tag──> inside ──closing tag──────────────> answer
  └──anything else──────┼───────────────────────────────────^
                        └─budget spent─> closing (forced) ──┘
"""

from __future__ import annotations

from collections.abc import Sequence

from engines.native.grammar.constraint import Answering, Free, Limit, OneToken, Progress, Unended
from engines.native.types import ThinkingSpec


class ThinkingConstraint:
    """Satisfies `TokenConstraint`. `inner` binds the answer proper, None where it is free.

    `token_bytes[id]` is a token's text, `opening_id` the opening tag's token where it is one token, and `closing_ids`
    what closes reasoning when the budget is spent.
    """

    def __init__(
        self,
        spec: ThinkingSpec,
        inner: Answering | None,
        token_bytes: Sequence[bytes],
        opening_id: int | None,
        closing_ids: Sequence[int],
    ) -> None:
        self._spec = spec
        self._inner = inner
        self._token_bytes = token_bytes
        self._opening_id = opening_id
        self._opening, self._closing = spec.opening.encode(), spec.closing.encode()
        self._forced = list(closing_ids)  # still to come once the budget is spent
        self._tail = b""  # of the text, in which a tag may end
        self._num_tokens = 0
        self._state = "inside" if spec.is_inside else "maybe"
        self._spend()

    @property
    def error(self) -> str:
        return "" if self._inner is None else self._inner.error

    def limit(self) -> Limit:
        match self._state:
            case "answer":
                return Free() if self._inner is None else self._inner.limit()
            case "closing":
                return OneToken(self._forced[0])
            case "maybe" if self._inner is not None:
                return self._inner.limit() if self._opening_id is None else self._inner.limit_or(self._opening_id)
            case _:
                return Free() if self._inner is None else Unended()

    def advance(self, token_id: int) -> Progress:
        if self._state == "answer":
            return "open" if self._inner is None else self._inner.advance(token_id)
        if self._state == "maybe" and self._inner is not None and token_id != self._opening_id:
            self._state = "answer"
            return self._inner.advance(token_id)
        self._follow(token_id)
        return "open"

    def _follow(self, token_id: int) -> None:
        self._tail = (self._tail + self._token_bytes[token_id])[-_TAIL:]
        if self._state == "closing":
            self._forced.pop(0)
            if not self._forced:
                self._state = "answer"
            return
        if self._state == "maybe":
            start = self._tail.lstrip()
            if start.startswith(self._opening):
                self._state = "inside"
            elif not self._opening.startswith(start):
                self._state = "answer"
            return
        self._num_tokens += 1
        if self._closing in self._tail:
            self._state = "answer"
        else:
            self._spend()

    def _spend(self) -> None:
        if self._state == "inside" and 0 <= self._spec.budget <= self._num_tokens:
            self._state = "closing"


_TAIL = 64  # bytes; more than a tag and the longest token before its end
