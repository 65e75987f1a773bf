"""The CUDA path's `Ops` where a token's result must not depend on what else is in its step: batch_invariant.

`TritonOps` picks kernels by the number of tokens, and each sums in an order of its own. Here there is one product for
every number of tokens, with one tile, never split along K; and one attention for decodes and chunks, whose rows walk
their keys in tiles from the first on, whoever shares the tile of queries. So the bits of a token's hidden state are
the same alone or in a crowd, in a graph or not, as a decode or as part of a recomputed prompt. Element-wise kernels
work row by row anyway. It costs speed: most at one token and in long prompts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engines.native.kernels import triton_linear
from engines.native.kernels.ops import Ops
from engines.native.kernels.triton_attention_prefill import prefill_attention
from engines.native.kernels.triton_linear import LinearConfig
from engines.native.kernels.triton_ops import TritonOps
from engines.native.layers.attention_metadata import AttentionMetadata

# Any tile would do, as long as it is always the same one.
_TILE = LinearConfig(64, 64, 64)
_WIDE_TILE = LinearConfig(32, 32, 32, num_stages=3)  # of 4-byte weights


class BatchInvariantOps(TritonOps):
    """The norm and the gate are apart from the product at every size, and rotation from attention, as `Ops` composes
    them."""

    norm_linear = Ops.norm_linear
    norm_gated_linear = Ops.norm_gated_linear
    attend = Ops.attend

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return triton_linear.linear(x, weight, bias, config=_tile(weight), pdl=self._pdl)

    def logits(self, x: Tensor, weight: Tensor) -> Tensor:
        return triton_linear.linear(x, weight, config=_tile(weight), out_dtype=torch.float32, pdl=self._pdl)

    def paged_attention(
        self,
        q: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        metadata: AttentionMetadata,
        scale: float,
        sliding_window: int = 0,
    ) -> Tensor:
        out = torch.empty_like(q)
        prefill_attention(
            q,
            key_cache,
            value_cache,
            out,
            metadata.block_tables,
            metadata.seq_lens,
            metadata.query_start_loc,
            q.shape[0],
            scale,
            sliding_window,
            pdl=self._pdl,
        )
        return out


def _tile(weight: Tensor) -> LinearConfig:
    return _TILE if weight.element_size() == 2 else _WIDE_TILE
