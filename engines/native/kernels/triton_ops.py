"""The CUDA path's `Ops`: Triton kernels, and cuBLAS where a product is bound by arithmetic.

Owns which kernel serves how many tokens: one has its own products, which take the norm, the residual addition and the
gate along; a handful has tiled ones, up to where cuBLAS is as fast.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from engines.native.kernels import triton_attention, triton_fused, triton_linear
from engines.native.kernels.ops import Ops, Rotary
from engines.native.kernels.triton_attention_decode import shallow_batch
from engines.native.kernels.triton_gemv import gemv
from engines.native.kernels.triton_linear import LinearConfig
from engines.native.layers.attention_metadata import AttentionMetadata, LastTokens


def batch_sizes(num_kv_heads: int) -> tuple[int, ...]:
    """Numbers of tokens, one in each range that has kernels of its own."""
    return (1, 2, 17, 33, 65, *filter(None, [shallow_batch(num_kv_heads)]))


class TritonOps(Ops):
    """Kernels are launched early (programmatic dependent launch) where the GPU can and it pays. flash: prefill
    attention is flash-attn's."""

    def __init__(self, *, pdl: bool = True, flash: bool = False) -> None:
        self._pdl = pdl
        self._flash = flash

    def prepare_linear(self, weight: Tensor) -> Tensor:
        return weight

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if x.shape[0] == 1:
            return gemv(x, weight, bias, pdl=self._pdl)[0]
        config = _tile(x, weight)
        if config is None:
            return functional.linear(x, weight, bias)
        return triton_linear.linear(x, weight, bias, config=config, pdl=self._pdl)

    def logits(self, x: Tensor, weight: Tensor) -> Tensor:
        if x.shape[0] == 1:
            return gemv(x, weight, out_dtype=torch.float32, pdl=self._pdl)[0]
        config = _tile(x, weight)
        if config is None:
            return torch.mm(x, weight.t(), out_dtype=torch.float32) if x.is_cuda else super().logits(x, weight)
        return triton_linear.linear(x, weight, config=config, out_dtype=torch.float32, pdl=self._pdl)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return triton_fused.rms_norm(x, weight, eps, pdl=self._pdl)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return triton_fused.add_rms_norm(x, residual, weight, eps, pdl=self._pdl)

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        return triton_fused.silu_and_mul(gate_up, pdl=self._pdl)

    def gated_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        config = _tile(x, weight, gated=True)
        if config is None:
            return super().gated_linear(x, weight, bias)
        return triton_linear.linear(x, weight, bias, gated=True, config=config, pdl=self._pdl)

    def norm_linear(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm_weight: Tensor,
        eps: float,
        weight: Tensor,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if x.shape[0] == 1:
            return gemv(x, weight, bias, residual=residual, norm_weight=norm_weight, eps=eps, pdl=self._pdl)
        return super().norm_linear(x, residual, norm_weight, eps, weight, bias)

    def norm_gated_linear(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm_weight: Tensor,
        eps: float,
        weight: Tensor,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if x.shape[0] == 1:
            return gemv(x, weight, bias, residual=residual, norm_weight=norm_weight, eps=eps, gated=True, pdl=self._pdl)
        config = _tile(x, weight, gated=True)
        if config is None:
            return super().norm_gated_linear(x, residual, norm_weight, eps, weight, bias)
        if residual is None:
            normed, total = self.rms_norm(x, norm_weight, eps), x
        else:
            normed, total = self.add_rms_norm(x, residual, norm_weight, eps)
        return triton_linear.linear(normed, weight, bias, gated=True, config=config, pdl=self._pdl), total

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
        return triton_fused.rope_and_cache(
            qkv,
            positions,
            cos_sin,
            q_norm_weight,
            k_norm_weight,
            eps,
            key_cache,
            value_cache,
            slot_mapping,
            num_heads,
            num_kv_heads,
            head_dim,
            pdl=self._pdl,
        )

    def paged_attention(
        self,
        q: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        metadata: AttentionMetadata,
        scale: float,
        sliding_window: int = 0,
    ) -> Tensor:
        return triton_attention.paged_attention(
            q, key_cache, value_cache, metadata, scale, sliding_window, flash=self._flash, pdl=self._pdl
        )

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
        num_tokens, head_dim = qkv.shape[0], key_cache.shape[3]
        whole_heads = rotary.cos_sin.shape[1] == head_dim
        only_decodes = metadata.num_decodes == num_tokens and last is None
        if not only_decodes or not whole_heads or key_cache.dtype != qkv.dtype:
            return super().attend(
                qkv, positions, rotary, key_cache, value_cache, metadata, num_heads, scale, sliding_window, last
            )
        out = torch.empty((num_tokens, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
        triton_attention.decode_attention(
            qkv.view(num_tokens, -1, head_dim),
            key_cache,
            value_cache,
            out,
            metadata.block_tables,
            metadata.seq_lens,
            metadata.max_seq_len,
            scale,
            sliding_window,
            rotary=rotary,
            pdl=self._pdl,
        )
        return out


def _tile(x: Tensor, weight: Tensor, *, gated: bool = False) -> LinearConfig | None:
    """Tiles are cut for 16-bit weights: of wider ones too few would fit on a multiprocessor."""
    if weight.element_size() != 2:
        return None
    return triton_linear.choose_config(x.shape[0], *weight.shape, gated=gated)
