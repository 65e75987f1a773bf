"""How many prefill tokens may ride along with running decodes, so that a long prompt does not freeze their streams.

Learns from the durations of past steps what a step costs: a base (its decodes) and so much per prefill token. Knows no
clock, no device and no sequences: whoever steps tells it what happened.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

_MEMORY = 0.8  # weight of the past against the newest step
_SMALLEST = 128  # tokens: below that a prompt would take forever, and a product of so few rows costs no less


class ChunkSizer:
    """`limit` is the number of prefill tokens for a step that also decodes.

    They may add `target_s` to what the decodes take alone; 0 means no target, no limit. What the decodes take does not
    count: the limit would fall while a burst of prompts is let in, and those behind would wait for the more sequences,
    the longer. sizes: numbers of tokens, ascending, that the device computes without padding; beyond the last any
    number is.
    """

    def __init__(
        self, target_s: float, first_limit: int = 2048, largest: int = 1 << 30, sizes: Sequence[int] = ()
    ) -> None:
        self._target_s = target_s
        self._largest = largest
        self._sizes = sizes
        self._base_s = 0.0
        self._token_s = 0.0
        self.limit = min(first_limit, largest) if target_s else largest

    def observe(self, num_decodes: int, num_prefill_tokens: int, duration_s: float) -> None:
        """A step took `duration_s` on the device."""
        if not self._target_s:
            return
        if num_prefill_tokens == 0:
            self._base_s = _mixed(self._base_s, duration_s)
        elif num_prefill_tokens >= _SMALLEST:
            base_s = self._base_s if num_decodes else 0.0
            self._token_s = _mixed(self._token_s, max(duration_s - base_s, 0.0) / num_prefill_tokens)
        if self._token_s:
            self.limit = self._fitting(max(_SMALLEST, min(self._largest, int(self._target_s / self._token_s))))

    def _fitting(self, limit: int) -> int:
        if not self._sizes or limit >= self._sizes[-1]:
            return limit
        return self._sizes[max(bisect_right(self._sizes, limit) - 1, 0)]


def _mixed(past: float, newest: float) -> float:
    return _MEMORY * past + (1 - _MEMORY) * newest if past else newest
