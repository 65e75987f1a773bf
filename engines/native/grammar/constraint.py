"""What the core knows of a grammar: it is told each token, and says which may come next. Values and protocols only."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.native.types import GrammarSpec, ThinkingSpec

Progress = Literal["open", "complete", "failed"]
"""open: more may or must follow. complete: nothing may follow. failed: `error` says why it cannot go on."""


@dataclass(frozen=True, slots=True)
class Free:
    """Any token may come next."""


@dataclass(frozen=True, slots=True)
class Unended:
    """Any token that does not end the answer."""


@dataclass(frozen=True, slots=True)
class OneToken:
    """This token and no other."""

    token_id: int


@dataclass(frozen=True, slots=True)
class Matched:
    """What a grammar allows, and `also` beside it where that is a token. `matcher` is the grammar library's."""

    matcher: Any
    also: int = -1


Limit = Free | Unended | OneToken | Matched


class TokenConstraint(Protocol):
    """What limits one sequence's tokens. Lives as long as the sequence and outlives preemption."""

    @property
    def error(self) -> str: ...

    def limit(self) -> Limit:
        """What may come next."""
        ...

    def advance(self, token_id: int) -> Progress:
        """Take in the token that was sampled."""
        ...


class Answering(TokenConstraint, Protocol):
    """A constraint that another token may stand in for, before it has begun."""

    def limit_or(self, token_id: int) -> Limit: ...


@dataclass(frozen=True, slots=True)
class Choosing:
    """A sequence whose next token its constraint limits.

    `place` is its index among the sequences that sample in this step. `stop_token_ids` are the end tokens that may be
    taken now: none before min_tokens, no EOS where EOS is ignored.
    """

    place: int
    constraint: TokenConstraint
    stop_token_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """Allowed tokens of some of a step's sampling sequences.

    `places[i]` is an index among the sequences that sample. Token t is allowed where bit t % 32 of bits[i, t // 32] is
    set; at least one bit of every row is. bits: [len(places), ceil(vocab_size / 32)] int32.
    """

    places: list[int]
    bits: NDArray[np.int32]


class GrammarError(ValueError):
    """The grammar cannot be honoured; the message is fit for the client."""


class Constraints(Protocol):
    """Makes constraints from what clients asked for, and masks from constraints."""

    def request(self, grammar: GrammarSpec | None, thinking: ThinkingSpec | None) -> Future[Any]:
        """A TokenConstraint in its own time, or GrammarError. Never blocks."""
        ...

    def masks(self, choosing: Sequence[Choosing]) -> TokenMasks:
        """Only of those whose next token is limited. The bits are good until the next call."""
        ...
