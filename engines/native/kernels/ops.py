"""The kernel surface that layers call: one protocol, satisfied by a module or an object per device.

Owns names, signatures and shapes. `reference.py` is the meaning of each operation in plain PyTorch; `__init__.py`
chooses an implementation. Knows no model and no device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from engines.native.layers.attention_metadata import AttentionMetadata, LastTokens

LinearWeight = Any
"""A matrix in the form that an implementation's `linear` reads fastest; opaque to everyone else."""


@dataclass(frozen=True, slots=True)
class Rotary:
    """What is done to queries and keys before attention."""

    cos_sin: Tensor  # [max_positions, rotary_dim] float32, cosines then sines
    q_norm_weight: Tensor | None  # [head_dim], of a norm of each head; both or none
    k_norm_weight: Tensor | None
    eps: float


class Ops(Protocol):
    """Every operation of a forward pass. x is [num_tokens, hidden] in the activations' dtype.

    The operations with a body here are compositions of the others. An implementation inherits them from this class, or
    has something faster.
    """

    def prepare_linear(self, weight: Tensor) -> LinearWeight:
        """Called once for each loaded weight [N, K]; the result may share its storage or be another layout of it."""
        ...

    def linear(self, x: Tensor, weight: LinearWeight, bias: Tensor | None = None) -> Tensor:
        """x [num_tokens, K] times the prepared weight [N, K] transposed, plus bias [N]: [num_tokens, N], x's dtype."""
        ...

    def logits(self, x: Tensor, weight: LinearWeight) -> Tensor:
        """`linear` in float32, whatever x's dtype."""
        return self.linear(x, weight).to(torch.float32)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(rms_norm(x + residual), x + residual)."""
        ...

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """silu(first half) * second half of each row: [num_tokens, 2 * I] to [num_tokens, I]."""
        ...

    def gated_linear(self, x: Tensor, weight: LinearWeight, bias: Tensor | None = None) -> Tensor:
        """silu_and_mul of the product with weight [2 * I, K]: [num_tokens, I]."""
        return self.silu_and_mul(self.linear(x, weight, bias))

    def norm_linear(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm_weight: Tensor,
        eps: float,
        weight: LinearWeight,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What a block of a layer begins with: (linear(rms_norm(x + residual)), x + residual).

        Without a residual, at the first layer, the sum is x.
        """
        if residual is None:
            return self.linear(self.rms_norm(x, norm_weight, eps), weight, bias), x
        normed, total = self.add_rms_norm(x, residual, norm_weight, eps)
        return self.linear(normed, weight, bias), total

    def norm_gated_linear(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm_weight: Tensor,
        eps: float,
        weight: LinearWeight,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`norm_linear` with silu_and_mul of the product in its place: weight [2 * I, K] gives [num_tokens, I]."""
        gate_up, total = self.norm_linear(x, residual, norm_weight, eps, weight, bias)
        return self.silu_and_mul(gate_up), total

    def rope_and_cache(
        self,
        qkv: Tensor,
        positions: Tensor,
        cos_sin: Tensor,
        q_norm_weight: Tensor | None,
        k_norm_weight: Tensor | None,
        eps: float,
        key_cache: Tensor,
        value_cache: Tensor,
        slot_mapping: Tensor,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
    ) -> Tensor:
        """Normalize (where a weight is given) and rotate q and k, write k and v to the cache, return q.

        qkv [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim], positions [num_tokens] int64, cos_sin
        [max_positions, rotary_dim] float32, caches [num_blocks, block_size, num_kv_heads, head_dim], slot_mapping
        [num_tokens] int64 (-1: not written). Returns [num_tokens, num_heads, head_dim].
        """
        ...

    def paged_attention(
        self,
        q: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        metadata: AttentionMetadata,
        scale: float,
        sliding_window: int = 0,
    ) -> Tensor:
        """Causal grouped-query attention over the paged cache: q [num_tokens, num_heads, head_dim] to its own shape.

        A sliding window of w > 0 positions lets a query see the last w, its own included; 0 is no window.
        """
        ...

    def attend(
        self,
        qkv: Tensor,
        positions: Tensor,
        rotary: Rotary,
        key_cache: Tensor,
        value_cache: Tensor,
        metadata: AttentionMetadata,
        num_heads: int,
        scale: float,
        sliding_window: int = 0,
        last: LastTokens | None = None,
    ) -> Tensor:
        """`rope_and_cache`, then `paged_attention`: qkv and positions of the one, [num_tokens, num_heads, head_dim].

        With `last` that of its queries only, [num_seqs, num_heads, head_dim]; all keys and values are written.
        """
        q = self.rope_and_cache(
            qkv,
            positions,
            rotary.cos_sin,
            rotary.q_norm_weight,
            rotary.k_norm_weight,
            rotary.eps,
            key_cache,
            value_cache,
            metadata.slot_mapping,
            num_heads,
            *key_cache.shape[2:],
        )
        if last is not None:
            q, metadata = q[last.at], last.metadata
        return self.paged_attention(q, key_cache, value_cache, metadata, scale, sliding_window)
