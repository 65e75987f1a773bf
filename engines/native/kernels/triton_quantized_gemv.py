"""Linear layers for one token over weights of 8 bits: dequantized in registers, summed in float32.

Bound by reading the codes: the plain weights' kernel (triton_gemv) with a scale at the end or a scale for each group.

Ours, because torch's int8 matmul (see benchmarks/gpu/cases_quant) takes neither the norm and the residual addition
along nor an early launch, which are a third of a decode step of one token.
The plain PyTorch twin is a product with QuantizedWeight.dequantize.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from engines.native.kernels.triton_gemv import GemvConfig
from engines.native.kernels.triton_kernel import kernel
from engines.native.kernels.triton_launch import (
    can_launch_early,
    div_ceil,
    next_power_of_2,
    prefetch_weights,
    release_successor,
    wait_for_predecessor,
)
from engines.native.quantization.weight import QuantizedWeight


@triton.jit
def _load_x(x_ptr, residual_ptr, norm_weight_ptr, sum_ptr, columns, in_range, stored, NORM: tl.constexpr,
            HAS_RESIDUAL: tl.constexpr):  # fmt: skip
    """(x + residual) times the norm's weight, and its square before that, in float32; stores the sum."""
    x = tl.load(x_ptr + columns, mask=in_range, other=0.0)
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + columns, mask=in_range, other=0.0)
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)
        tl.store(sum_ptr + columns, x, mask=stored)
    x = x.to(tl.float32)
    squares = x * x
    if NORM:
        x *= tl.load(norm_weight_ptr + columns, mask=in_range, other=0.0).to(tl.float32)
    return x, squares


@triton.jit
def store_outputs(acc, up, squares, columns, bias_ptr, out_ptr, N, K, eps, NORM: tl.constexpr, GATED: tl.constexpr,
                   HAS_BIAS: tl.constexpr):  # fmt: skip
    if NORM:
        # The scale is common to the whole vector, so it can wait until the squares are known.
        scale = tl.rsqrt(squares / K + eps)
        acc *= scale
        up *= scale
    if HAS_BIAS:
        acc += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)
    if GATED:
        if HAS_BIAS:
            up += tl.load(bias_ptr + N + columns, mask=columns < N, other=0.0).to(tl.float32)
        acc = acc * tl.sigmoid(acc) * up
    tl.store(out_ptr + columns, acc.to(out_ptr.dtype.element_ty), mask=columns < N)


@triton.jit
def _grouped_sum(products, scale_ptr, rows, start, NUM_GROUPS, GROUP: tl.constexpr, BLOCK_N: tl.constexpr,
                 BLOCK_K: tl.constexpr):  # fmt: skip
    """Products [BLOCK_N, BLOCK_K] to sums [BLOCK_N, BLOCK_K / 16] of 16 columns, each times its group's scale."""
    sums = tl.sum(tl.reshape(products, (BLOCK_N, BLOCK_K // 16, 16)), axis=2)
    groups = (start + tl.arange(0, BLOCK_K // 16) * 16) // GROUP
    scales = scale_ptr + rows[:, None] * NUM_GROUPS + groups[None, :]
    return sums * tl.load(scales, mask=(groups < NUM_GROUPS)[None, :], other=0.0).to(tl.float32)


@kernel()
def _byte_gemv_kernel(
    x_ptr,  # [K]
    residual_ptr,  # [K], added to x before the norm; unused without HAS_RESIDUAL
    norm_weight_ptr,  # [K], unused without NORM
    weight_ptr,  # int8 or e4m3 [N, K], or [2 * N, K] if GATED
    scale_ptr,  # [N or 2 * N, NUM_GROUPS]
    bias_ptr,
    out_ptr,  # [N]
    sum_ptr,  # [K]: x + residual
    N,
    K,
    eps,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,  # 0: a scale for a row
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
    rows = tl.minimum(columns, N - 1).to(tl.int64)
    release_successor(PDL)
    if PDL and PREFETCH_K > 0:
        prefetch_weights(weight_ptr, block * BLOCK_N, N, 0, K, BLOCK_N, PREFETCH_K)
        if GATED:
            prefetch_weights(weight_ptr, N + block * BLOCK_N, 2 * N, 0, K, BLOCK_N, PREFETCH_K)
    wait_for_predecessor(PDL)

    WIDTH: tl.constexpr = BLOCK_K // 16 if GROUP > 0 else BLOCK_K
    products = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    up_products = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    squares = tl.zeros([BLOCK_K], tl.float32)
    for start in range(0, K, BLOCK_K):
        ks = start + tl.arange(0, BLOCK_K)
        in_range = ks < K
        weight = tl.load(weight_ptr + rows[:, None] * K + ks[None, :], mask=in_range[None, :], other=0.0)
        if GATED:
            up_weight = tl.load(weight_ptr + (rows + N)[:, None] * K + ks[None, :], mask=in_range[None, :], other=0.0)
        x, square = _load_x(
            x_ptr,
            residual_ptr,
            norm_weight_ptr,
            sum_ptr,
            ks,
            in_range,
            in_range & (block + tl.zeros_like(ks) == 0),
            NORM,
            HAS_RESIDUAL,
        )
        squares += square
        if GROUP > 0:
            products += _grouped_sum(
                weight.to(tl.float32) * x[None, :],
                scale_ptr,
                rows,
                start,
                K // GROUP,
                GROUP,
                BLOCK_N,
                BLOCK_K,
            )
            if GATED:
                up_products += _grouped_sum(
                    up_weight.to(tl.float32) * x[None, :], scale_ptr, rows + N, start, K // GROUP, GROUP,
                    BLOCK_N, BLOCK_K,
                )  # fmt: skip
        else:
            products += weight.to(tl.float32) * x[None, :]
            if GATED:
                up_products += up_weight.to(tl.float32) * x[None, :]
    acc = tl.sum(products, axis=1)
    up = tl.sum(up_products, axis=1)
    if GROUP == 0:
        acc *= tl.load(scale_ptr + rows).to(tl.float32)
        if GATED:
            up *= tl.load(scale_ptr + N + rows).to(tl.float32)
    store_outputs(acc, up, tl.sum(squares, axis=0), columns, bias_ptr, out_ptr, N, K, eps, NORM, GATED, HAS_BIAS)


def quantized_gemv(
    x: Tensor,
    weight: QuantizedWeight,
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
    """(x [1, K] times the weight [N, K] transposed, plus bias [N]; x + residual [1, K], or x where there is none).

    As triton_gemv.gemv, for the formats int8 and fp8; K is a multiple of 16.
    """
    rows, k = weight.shape
    assert x.shape == (1, k)
    assert residual is None or norm_weight is not None
    n = rows // 2 if gated else rows
    assert weight.format.codes_per_item == 1
    config = config or choose_config(n, k, gated)
    out = torch.empty((1, n), dtype=out_dtype or x.dtype, device=x.device)
    total = x if residual is None else torch.empty_like(x)
    prefetch = config.prefetch_bytes // (rows // n * config.block_n * weight.codes.element_size())
    _byte_gemv_kernel(
        (div_ceil(n, config.block_n),),
        x,
        x if residual is None else residual,
        x if norm_weight is None else norm_weight,
        weight.codes,
        weight.scales,
        weight.codes if bias is None else bias,
        out,
        total,
        n,
        k,
        eps,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        GROUP=weight.group_size if weight.scales.shape[1] > 1 else 0,
        NORM=norm_weight is not None,
        HAS_RESIDUAL=residual is not None,
        GATED=gated,
        HAS_BIAS=bias is not None,
        PREFETCH_K=prefetch,
        num_warps=config.num_warps,
        pdl=can_launch_early(x, pdl and config.pdl),
    )
    return out, total


@functools.cache
def choose_config(n: int, k: int, gated: bool) -> GemvConfig:
    """For a weight of n rows (twice that if gated) of k, from timings on an H200 (benchmarks/gpu/NOTES.md)."""
    widest = max(16, next_power_of_2(k))
    if gated:
        return GemvConfig(block_n=4, block_k=min(1024, widest), pdl=n * k <= 2**25)
    if n * k <= 2**25:
        return GemvConfig(block_n=4, block_k=min(2048, widest))
    block_n, block_k = (8, 1024) if n * k >= 2**26 else (4, 2048)
    return GemvConfig(block_n, min(block_k, widest), prefetch_bytes=8 * 1024)
