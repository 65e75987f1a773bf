"""How many prefill tokens ride along with running decodes: few enough that streams do not freeze, and spread evenly.

A step reads all weights whatever it computes, so its first prompt tokens cost little, and steps that only decode waste
that. Sequences that began together also end together, and their successors begin together again. A burst of prompts is
therefore spread over the steps to come rather than computed at once, but never slower than decodes make room for more,
and less where the decodes alone keep the device computing; in steps of sizes that the device computes without padding;
and no step gets longer than the target allows, by what past steps cost. What this brings is in benchmarks/gpu/NOTES.md.

Knows no clock, no device and no sequences: whoever steps tells it what happened.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

_MEMORY = 0.8  # weight of the past against the newest step
_SURPRISE = 4.0  # times the past, that the newest step counts for at the most: the device or the host may stall once
_SMALLEST = 128  # tokens: below that a prompt would take forever, and a product of so few rows costs no less
_TELLING = _SMALLEST // 2  # tokens of which a step tells what one costs; as few as sizes make of the smallest limit
_SPREAD_STEPS = 64  # over which a burst of prompts is spread, at the most
_CHEAP_ROWS = 192  # of a step, whose arithmetic the weights' reading hides; where decodes fill them nothing is spread
_LEAST_SHARE = 0.15  # of the target, that prompts get however few there are
_TOKENS_PER_DECODE = 4  # keeps up where prompts are up to four times as long as answers
_FORGOTTEN_AFTER = 1000  # steps with prompts


@dataclass(frozen=True, slots=True)
class StepSizes:
    """Steps that the device computes without padding: places for decodes, and rows in all. Both ascending; beyond the
    last, any number is computed as it is."""

    decodes: Sequence[int] = ()
    totals: Sequence[int] = ()

    def at_least(self, num_decodes: int, tokens: int) -> int:
        """Prefill tokens of the smallest size that has room for so many."""
        place = self._place(num_decodes)
        at = bisect_left(self.totals, place + tokens)
        return self.totals[at] - place if at < len(self.totals) else tokens

    def at_most(self, num_decodes: int, tokens: int) -> int:
        """Prefill tokens of the largest size that holds no more than so many; as many as given where all are larger."""
        place = self._place(num_decodes)
        at = bisect_right(self.totals, place + tokens)
        if at == len(self.totals) or at == 0 or self.totals[at - 1] <= place:
            return tokens
        return self.totals[at - 1] - place

    def _place(self, num_decodes: int) -> int:
        at = bisect_left(self.decodes, num_decodes)
        return self.decodes[at] if at < len(self.decodes) else num_decodes


class ChunkSizer:
    """Says how many prefill tokens a step with decodes may have, and learns from how long steps took.

    They may add `target_s` to what the decodes take alone; 0 means no target, and no limit but `largest`. What the
    decodes take does not count: the limit would fall while a burst of prompts is let in, and those behind would wait
    for the more sequences, the longer.
    """

    def __init__(
        self,
        target_s: float,
        first_limit: int = 2048,
        largest: int = 1 << 30,
        sizes: StepSizes = StepSizes(),
    ) -> None:
        self._target_s = target_s
        self._largest = largest
        self._sizes = sizes
        self._decodes = DecodeTimes()
        self._token_s = 0.0  # what a prompt token takes, between the two
        self._least_s = self._most_s = 0.0
        self.limit = min(first_limit, largest) if target_s else largest  # by the target alone

    def tokens_for(self, num_decodes: int, backlog: int) -> int:
        """The most prefill tokens of a step with so many decodes, when prompts of `backlog` tokens wait in all."""
        if not self._target_s or not self._token_s:
            return self.limit
        spread = _SPREAD_STEPS if num_decodes < _CHEAP_ROWS else 1
        least = int(_LEAST_SHARE * self._target_s / self._token_s) + _TOKENS_PER_DECODE * num_decodes
        tokens = self._sizes.at_least(num_decodes, max(_SMALLEST, least, -(-backlog // spread)))
        return tokens if tokens <= self.limit else self._sizes.at_most(num_decodes, self.limit)

    def observe(self, num_decodes: int, num_prefill_tokens: int, duration_s: float) -> None:
        """A step took `duration_s` on the device."""
        if not self._target_s:
            return
        if num_prefill_tokens == 0:
            self._decodes.observe(num_decodes, duration_s)
        elif num_prefill_tokens >= _TELLING:
            least_base_s, most_base_s = self._decodes.bounds(num_decodes)
            self._least_s = _mixed(self._least_s, max(duration_s - most_base_s, 0.0) / num_prefill_tokens)
            self._most_s = _mixed(self._most_s, max(duration_s - least_base_s, 0.0) / num_prefill_tokens)
            self._token_s = min(max(self._token_s or self._most_s, self._least_s), self._most_s)
        if self._token_s:
            self.limit = max(_SMALLEST, min(self._largest, int(self._target_s / self._token_s)))


class DecodeTimes:
    """What steps that only decode take, by how many decode: one number from each power of two to the next.

    While prompts keep coming no step decodes alone. What was last seen, with fewer sequences perhaps, then tells too
    little, and how long a prompt token takes is not known but between bounds.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float, int]] = {}  # by bit length of their number: seconds, when last seen
        self._now = 0

    def observe(self, num_decodes: int, duration_s: float) -> None:
        kind = num_decodes.bit_length()
        past_s, _ = self._seen.get(kind, (0.0, 0))
        self._seen[kind] = _mixed(past_s, duration_s), self._now

    def bounds(self, num_decodes: int) -> tuple[float, float]:
        """The least and the most that so many decodes take alone, in seconds: no less than fewer of them do, and no
        more than in proportion."""
        self._now += 1
        if not num_decodes:
            return 0.0, 0.0
        known = {kind: s for kind, (s, seen) in self._seen.items() if self._now - seen <= _FORGOTTEN_AFTER}
        kind = num_decodes.bit_length()
        if kind in known:
            return known[kind], known[kind]
        fewer = [other for other in known if other < kind]
        if not fewer:
            return 0.0, min(known.values(), default=math.inf)
        nearest = max(fewer)
        return known[nearest], known[nearest] * 2 ** (kind - nearest)


def _mixed(past: float, newest: float) -> float:
    return _MEMORY * past + (1 - _MEMORY) * min(newest, _SURPRISE * past) if past else newest
