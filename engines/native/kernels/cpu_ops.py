"""The CPU path's `Ops`: numba kernels over packed weights, sums in float32."""

# Plain functions stand in for methods, which pyright takes only from a class that inherits nothing.
# pyright: reportAssignmentType=false

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from engines.native.kernels import cpu_attention, cpu_fused, cpu_linear
from engines.native.kernels.cpu_linear import PackedWeight
from engines.native.kernels.ops import Ops
from engines.native.layers.attention_metadata import AttentionMetadata


class CPUOps(Ops):
    """Activations are float32; a weight keeps the width it was loaded in.

    Products of bfloat16 weights round their inputs to bfloat16 too where the processor multiplies those natively at
    twice the rate, and sum in float32 (against float32: a KL divergence of 1.6e-4 on SmolLM2).
    """

    linear = staticmethod(cpu_linear.linear)
    rms_norm = staticmethod(cpu_fused.rms_norm)
    add_rms_norm = staticmethod(cpu_fused.add_rms_norm)
    silu_and_mul = staticmethod(cpu_fused.silu_and_mul)
    rope_and_cache = staticmethod(cpu_fused.rope_and_cache)
    paged_attention = staticmethod(cpu_attention.paged_attention)

    @staticmethod
    def prepare_linear(weight: Tensor) -> PackedWeight:
        return cpu_linear.pack_weight(weight, weight.dtype, bfloat16_products=weight.dtype == torch.bfloat16)


class BatchInvariantCPUOps(CPUOps):
    """One attention for decodes and prompts, so that a token has the same bits in both: products have them anyway.

    Without it a sequence that was preempted, and whose own tokens are recomputed as a prompt, may go on otherwise.
    """

    @staticmethod
    def paged_attention(
        q: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        metadata: AttentionMetadata,
        scale: float,
        sliding_window: int = 0,
    ) -> Tensor:
        as_prompts = replace(metadata, num_decodes=0)
        return cpu_attention.paged_attention(q, key_cache, value_cache, as_prompts, scale, sliding_window)
