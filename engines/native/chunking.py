"""How many prefill tokens may ride along with running decodes, so that a long prompt does not freeze their streams.

Learns from the durations of past steps what a step costs: a base (its decodes) and so much per prefill token. Knows no
clock, no device and no sequences: whoever steps tells it what happened.
"""

from __future__ import annotations

_MEMORY = 0.8  # weight of the past against the newest step
_SMALLEST = 128  # tokens: below that a prompt would take forever, and a product of so few rows costs no less


class ChunkSizer:
    """`limit` is the number of prefill tokens for a step that also decodes; `target_s` 0 means no target, no limit."""

    def __init__(self, target_s: float, first_limit: int = 2048, largest: int = 1 << 30) -> None:
        self._target_s = target_s
        self._largest = largest
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
            room_s = max(self._target_s - self._base_s, 0.0)
            self.limit = max(_SMALLEST, min(self._largest, int(room_s / self._token_s)))


def _mixed(past: float, newest: float) -> float:
    return _MEMORY * past + (1 - _MEMORY) * newest if past else newest
