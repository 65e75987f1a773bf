"""Grouped-query self-attention over the paged KV cache, with its projections and the norm before them.

Owns the projections' weights and each layer's own settings: scale, window, rotary table. The kernels do the arithmetic;
the batch's layout arrives in the metadata.
"""

from __future__ import annotations

from torch import Tensor

from engines.native.kernels.ops import Rotary
from engines.native.layers.attention_metadata import AttentionMetadata, LastTokens
from engines.native.layers.context import LayerContext
from engines.native.layers.linear import Part, column_parallel, row_parallel
from engines.native.layers.norm import RMSNorm
from engines.native.models.model_config import ModelConfig


class Attention:
    """One layer's attention; `name` is its prefix in the checkpoint, `cos_sin` its rotary table."""

    def __init__(
        self, config: ModelConfig, context: LayerContext, name: str, norm: RMSNorm, layer: int, cos_sin: Tensor
    ) -> None:
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        projections = ("qkv_proj",) * 3 if config.fused_checkpoint else ("q_proj", "k_proj", "v_proj")
        q, k, v = (f"{name}.{projection}" for projection in projections)
        parts = [
            Part(q, heads, head_dim),
            Part(k, kv_heads, head_dim),
            Part(v, kv_heads, head_dim, makes_values=True),
        ]
        self.qkv_proj = column_parallel(context, config.hidden_size, parts, config.qkv_bias)
        self.o_proj = row_parallel(context, Part(f"{name}.o_proj", heads, head_dim), config.hidden_size, config.o_bias)
        q_norm, k_norm = (
            RMSNorm(context, f"{name}.{which}", head_dim, config.rms_norm_eps).weight if config.qk_norm else None
            for which in ("q_norm", "k_norm")
        )
        self.norm = norm
        self.num_heads, self.num_kv_heads = (_count(context.shard.take(units, name)) for units in (heads, kv_heads))
        self.rotary = Rotary(cos_sin, q_norm, k_norm, config.rms_norm_eps)
        self.scale = config.attention_scale
        self.sliding_window = config.sliding_windows[layer]
        self._ops = context.ops

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        positions: Tensor,
        kv_cache: tuple[Tensor, Tensor],
        metadata: AttentionMetadata,
        last: LastTokens | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(attention of norm(x + residual), x + residual), [num_tokens, hidden_size]; writes the cache.

        positions [num_tokens] int64. Without a residual, at the first layer, the sum is x. With `last`, all tokens'
        keys and values are written, but only those tokens' rows returned, [num_seqs, hidden_size].
        """
        key_cache, value_cache = kv_cache
        qkv, residual = self.norm.then_linear(x, residual, self.qkv_proj)
        mixed = self._ops.attend(
            qkv,
            positions,
            self.rotary,
            key_cache,
            value_cache,
            metadata,
            self.num_heads,
            self.scale,
            self.sliding_window,
            last,
        )
        return self.o_proj(mixed.flatten(1)), residual if last is None else residual[last.at]


def _count(share: slice) -> int:
    return share.stop - share.start
