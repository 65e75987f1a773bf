"""Linear layers for one token: its vector times the weight, on the ordinary cores, in float32.

Bound by reading the weight once; latency is hidden by many small blocks. The vector may be normalized on the way in,
with the residual stream added before (what `add_rms_norm` does, by every block for itself: the vector is short), and
silu(gate) * up may be applied across the two halves of the weight, which saves a decode step those launches.

The plain PyTorch twins are reference.linear, norm_linear and norm_gated_linear.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

import functools
from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from engines.native.kernels.triton_kernel import kernel
from engines.native.kernels.triton_launch import (
    can_launch_early,
    div_ceil,
    next_power_of_2,
    prefetch_weights,
    release_successor,
    wait_for_predecessor,
)


@dataclass(frozen=True, slots=True)
class GemvConfig:
    """A block sums block_n rows of the weight, block_k columns at a time."""

    block_n: int
    block_k: int
    num_warps: int = 4
    prefetch_bytes: int = 32 * 1024  # of a block's weights, asked for before the predecessor is done
    pdl: bool = True


@kernel()
def _gemv_kernel(
    x_ptr,  # [K]
    residual_ptr,  # [K], added to x before the norm; unused without HAS_RESIDUAL
    norm_weight_ptr,  # [K], unused without NORM
    weight_ptr,  # [N, K], or [2 * N, K] if GATED
    bias_ptr,
    out_ptr,  # [N]
    sum_ptr,  # [K]: x + residual
    N,
    K,
    eps,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NORM: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PREFETCH_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (cdiv(N, BLOCK_N),)."""
    block = tl.program_id(0)
    columns = block * BLOCK_N + tl.arange(0, BLOCK_N)
    weight_rows = tl.minimum(columns, N - 1).to(tl.int64)
    release_successor(PDL)
    if PDL and PREFETCH_K > 0:
        prefetch_weights(weight_ptr, block * BLOCK_N, N, 0, K, BLOCK_N, PREFETCH_K)
        if GATED:
            prefetch_weights(weight_ptr, N + block * BLOCK_N, 2 * N, 0, K, BLOCK_N, PREFETCH_K)
    wait_for_predecessor(PDL)

    products = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    up_products = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    squares = tl.zeros([BLOCK_K], tl.float32)
    for start in range(0, K, BLOCK_K):
        ks = start + tl.arange(0, BLOCK_K)
        in_range = ks < K
        weight = tl.load(weight_ptr + weight_rows[:, None] * K + ks[None, :], mask=in_range[None, :], other=0.0)
        if GATED:
            up_weight = tl.load(
                weight_ptr + (weight_rows + N)[:, None] * K + ks[None, :], mask=in_range[None, :], other=0.0
            )
        x = tl.load(x_ptr + ks, mask=in_range, other=0.0)
        if HAS_RESIDUAL:
            residual = tl.load(residual_ptr + ks, mask=in_range, other=0.0)
            x = (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)
            tl.store(sum_ptr + ks, x, mask=in_range & (block == 0))
        x = x.to(tl.float32)
        if NORM:
            squares += x * x
            x *= tl.load(norm_weight_ptr + ks, mask=in_range, other=0.0).to(tl.float32)
        products += weight.to(tl.float32) * x[None, :]
        if GATED:
            up_products += up_weight.to(tl.float32) * x[None, :]
    acc = tl.sum(products, axis=1)
    up = tl.sum(up_products, axis=1)
    if NORM:
        # The scale is common to the whole vector, so it can wait until the squares are known.
        scale = tl.rsqrt(tl.sum(squares, axis=0) / K + eps)
        acc *= scale
        up *= scale
    if HAS_BIAS:
        acc += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)
    if GATED:
        if HAS_BIAS:
            up += tl.load(bias_ptr + N + columns, mask=columns < N, other=0.0).to(tl.float32)
        acc = acc * tl.sigmoid(acc) * up
    tl.store(out_ptr + columns, acc.to(out_ptr.dtype.element_ty), mask=columns < N)


def gemv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    out_dtype: torch.dtype | None = None,
    pdl: bool = False,
    config: GemvConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """(x [1, K] times weight [N, K] transposed, plus bias [N]; x + residual [1, K], or x where there is none).

    norm_weight [K]: the sum is normalized before the product, rms_norm(x + residual, norm_weight, eps). gated: weight
    is [2 * N, K] and the result silu_and_mul of the product. Sums in float32, rounded once, to out_dtype (default: that
    of x). weight is contiguous with K a multiple of 8.
    """
    (num_tokens, k), rows = x.shape, weight.shape[0]
    assert num_tokens == 1
    assert residual is None or norm_weight is not None
    n = rows // 2 if gated else rows
    config = config or choose_gemv_config(n, k, normed=norm_weight is not None, gated=gated)
    out = torch.empty((1, n), dtype=out_dtype or x.dtype, device=x.device)
    total = x if residual is None else torch.empty_like(x)
    _gemv_kernel(
        (div_ceil(n, config.block_n),),
        x,
        x if residual is None else residual,
        weight if norm_weight is None else norm_weight,
        weight,
        weight if bias is None else bias,
        out,
        total,
        n,
        k,
        eps,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        NORM=norm_weight is not None,
        HAS_RESIDUAL=residual is not None,
        GATED=gated,
        HAS_BIAS=bias is not None,
        PREFETCH_K=config.prefetch_bytes // (rows // n * config.block_n * weight.element_size()),
        num_warps=config.num_warps,
        pdl=can_launch_early(x, pdl and config.pdl),
    )
    return out, total


@functools.cache
def choose_gemv_config(n: int, k: int, *, normed: bool = False, gated: bool = False) -> GemvConfig:
    """For a weight of n rows (twice that if gated) of k, from timings on an H100 and an H200 (benchmarks/gpu/NOTES.md).

    All start early; a thousand resident blocks that each ask for 32 KiB ahead of time ask for more than L2 holds.
    """
    large = n * k >= 2**23
    widest = next_power_of_2(k)
    prefetch_bytes = (8 if large or gated else 32) * 1024
    if gated:
        block_n, block_k = (4, 1024) if large else (8, 512)
    else:
        block_n, block_k = 4, 1024 if normed else 2048
    return GemvConfig(block_n, min(block_k, widest), prefetch_bytes=prefetch_bytes)
