"""The serial roofline: how fast a device's limits let a model run, from the model's shape alone.

A step cannot be faster than its bytes through memory, nor than its operations through the matrix units. The serial
limit adds these times up: every prompt's prefill by its operations, then decode steps that read the weights and the KV
cache once each. An engine that ran prefill and decode side by side could pass it. No torch here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from engines.native.bench.figures import Limits, Load, Shares
from engines.native.models.model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class Work:
    """What must be done: bytes through memory, operations (a multiplication and an addition are two)."""

    moved_bytes: float
    flops: float

    def __add__(self, other: Work) -> Work:
        return Work(self.moved_bytes + other.moved_bytes, self.flops + other.flops)

    def times(self, count: float) -> Work:
        return Work(self.moved_bytes * count, self.flops * count)


@dataclass(frozen=True, slots=True)
class Roofline:
    """`step_weight_bytes` and `kv_token_bytes` are as the engine keeps them: see BuiltCore."""

    config: ModelConfig
    step_weight_bytes: int
    kv_token_bytes: int
    limits: Limits

    def weights(self, steps: float) -> Work:
        """What each step reads whatever it computes."""
        return Work(self.step_weight_bytes * steps, 0)

    def prefill(self, num_tokens: int) -> Work:
        """A prompt from nothing: its layers' products and attention, its KV written, and one row of logits."""
        products = 2 * (self._layer_weights * num_tokens + self._head_weights)
        return Work(self.kv_token_bytes * num_tokens, products + self._attention_flops(1, num_tokens))

    def decode(self, first_length: int, last_length: int) -> Work:
        """Decodes of one sequence that see first_length, ..., last_length tokens, one length a step; none if fewer."""
        steps = max(0, last_length - first_length + 1)
        seen = self._seen(first_length, last_length) if steps else 0
        products = 2 * (self._layer_weights + self._head_weights) * steps
        attention = self._attention_flops(first_length, last_length) if steps else 0
        return Work(self.kv_token_bytes * seen / self.config.num_layers, products + attention)

    def seconds(self, work: Work) -> float:
        """By the bandwidth or by the matrix rate, whichever takes longer."""
        return max(work.moved_bytes / self.limits.copy_bytes_per_s, work.flops / self.limits.matmul_flops_per_s)

    def serial_s(self, load: Load, max_batch: int) -> float:
        """Every prefill by its operations, then decodes in batches as full as the load and the engine let them be."""
        batch = min(load.concurrency, load.requests, max_batch)
        prefill_s = load.requests * self.prefill(load.prompt_tokens).flops / self.limits.matmul_flops_per_s
        decodes = self._decodes(load).times(batch) + self.weights(load.output_tokens - 1)
        return prefill_s + load.requests / batch * self.seconds(decodes)

    def work(self, load: Load, steps: int) -> Work:
        """All that a load moves and computes in `steps` steps."""
        return (self.prefill(load.prompt_tokens) + self._decodes(load)).times(load.requests) + self.weights(steps)

    def shares(self, work: Work, seconds: float) -> Shares:
        return Shares(
            bandwidth=work.moved_bytes / seconds / self.limits.copy_bytes_per_s,
            matrix=work.flops / seconds / self.limits.matmul_flops_per_s,
        )

    def _decodes(self, load: Load) -> Work:
        """A request's tokens after the first, which its prefill brings."""
        return self.decode(load.prompt_tokens + 1, load.prompt_tokens + load.output_tokens - 1)

    # --- the model's shape --------------------------------------------------------------------------------------------

    @property
    def _layer_weights(self) -> int:
        c = self.config
        attention = c.hidden_size * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
        return c.num_layers * (attention + 3 * c.hidden_size * c.intermediate_size)

    @property
    def _head_weights(self) -> int:
        return self.config.vocab_size * self.config.hidden_size

    def _seen(self, first: int, last: int) -> int:
        """Positions that queries at lengths first..last attend to, summed over lengths and layers."""
        windows = Counter(self.config.sliding_windows)
        return sum(count * _sum_seen(first, last, window) for window, count in windows.items())

    def _attention_flops(self, first: int, last: int) -> int:
        """Two products of head_dim a query head and position seen."""
        return 4 * self.config.num_heads * self.config.head_dim * self._seen(first, last)


def _sum_seen(first: int, last: int, window: int) -> int:
    """Sum of min(n, window) over n = first..last; window 0 is none."""
    full = min(last, window) if window else last
    grown = _triangle(full) - _triangle(first - 1) if full >= first else 0
    return grown + window * (last - max(full, first - 1))


def _triangle(n: int) -> int:
    return n * (n + 1) // 2
