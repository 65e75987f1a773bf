"""The CUDA path's `Ops`: Triton kernels, and cuBLAS where a product is bound by arithmetic.

Owns which implementation serves which size, from timings on an H100 (benchmarks/gpu/NOTES.md).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from engines.native.kernels import triton_attention, triton_fused, triton_linear
from engines.native.layers.attention_metadata import AttentionMetadata

SKINNY_ROWS = 16
"""Up to this many tokens our own split-K products read the weights faster than cuBLAS does."""


class TritonOps:
    """Satisfies `Ops`. Kernels are launched early (programmatic dependent launch) where the GPU can."""

    def __init__(self, *, pdl: bool = True) -> None:
        self._pdl = pdl

    def prepare_linear(self, weight: Tensor) -> Tensor:
        return weight

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if x.shape[0] <= SKINNY_ROWS:
            return triton_linear.linear(x, weight, bias, pdl=self._pdl)
        return functional.linear(x, weight, bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return triton_fused.rms_norm(x, weight, eps, pdl=self._pdl)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return triton_fused.add_rms_norm(x, residual, weight, eps, pdl=self._pdl)

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        return triton_fused.silu_and_mul(gate_up, pdl=self._pdl)

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
            q, key_cache, value_cache, metadata, scale, sliding_window, pdl=self._pdl
        )
