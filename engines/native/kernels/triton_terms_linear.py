"""Linear layers for a few tokens over weights of 8 bits: products of bytes by bytes, with activations in two terms.

x becomes (first + second / SECOND) times a scale a token, both terms of the weight's kind (triton_quantize): the second
is what the first leaves, so that together they are as fine as bfloat16. The terms are two columns of one product on the
matrix units, added up at the end; the weight goes there as it lies in memory. Widening it in registers for 16-bit
activations takes two instructions a weight and a wait a step, for which eight tokens over Qwen3-8B's smaller matrices
took longer than bfloat16 weights, twice the bytes, take. Beyond a few tokens arithmetic decides.

Sums of e4m3 on the matrix units keep fewer bits than float32; they are added up in float32 after each BLOCK_K columns.
The plain PyTorch twin is a product with QuantizedWeight.dequantize.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

from __future__ import annotations

import functools
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from engines.native.kernels.triton_kernel import kernel
from engines.native.kernels.triton_launch import (
    arrival_counters,
    can_launch_early,
)
from engines.native.kernels.triton_linear import LinearConfig
from engines.native.kernels.triton_quantize import SECOND_TERM, TwoTerms
from engines.native.kernels.triton_split_k import begin_split, finish_transposed
from engines.native.quantization.weight import QuantizedWeight


@triton.jit
def _product(weight_rows, start, x, in_range, acc, EVEN_K: tl.constexpr, BLOCK_K: tl.constexpr, NATIVE: tl.constexpr):
    if EVEN_K:
        weight = tl.load(weight_rows + start)
    else:
        weight = tl.load(weight_rows + start, mask=in_range[None, :], other=0.0)
    if not NATIVE:
        return tl.dot(weight.to(tl.float32), tl.trans(x.to(tl.float32)), acc, input_precision="ieee")
    elif weight.dtype == tl.int8:
        return tl.dot(weight, tl.trans(x), acc, out_dtype=tl.int32)
    else:
        return tl.dot(weight, tl.trans(x), acc, max_num_imprecise_acc=BLOCK_K)


@triton.jit
def _joined(acc, token_scales, row_scales, SECOND: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):
    """The two terms' columns [BLOCK_N, 2 * BLOCK_M] as one [BLOCK_N, BLOCK_M]."""
    first, second = tl.split(tl.reshape(acc.to(tl.float32), (BLOCK_N, BLOCK_M, 2)))
    return (first + second / SECOND) * token_scales[None, :] * row_scales.to(tl.float32)[:, None]


@kernel(varying=["M"])
def _terms_linear_kernel(
    codes_ptr,  # e4m3 or int8 [M, 2, K]
    token_scale_ptr,  # [M] float32
    weight_ptr,  # the same [N, K], or [2 * N, K] if GATED
    scale_ptr,  # [N or 2 * N]
    bias_ptr,
    out_ptr,  # [M, N]
    partial_ptr,  # [tiles, SPLIT_K, BLOCK_N, BLOCK_M] float32, unused with SPLIT_K == 1
    arrived,
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NATIVE: tl.constexpr,  # whether the device multiplies such bytes
    SECOND: tl.constexpr,
    PREFETCH_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (cdiv(N, BLOCK_N), SPLIT_K, cdiv(M, BLOCK_M))."""
    tokens = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    terms = tl.program_id(2) * BLOCK_M * 2 + tl.arange(0, BLOCK_M * 2)
    features = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first_k, last_k = begin_split(weight_ptr, N, K, BLOCK_N, BLOCK_K, SPLIT_K, GATED, PREFETCH_K, PDL)

    ks = tl.arange(0, BLOCK_K)
    rows = tl.minimum(features, N - 1).to(tl.int64)
    codes_at = codes_ptr + terms.to(tl.int64)[:, None] * K + ks[None, :]
    weight_rows = weight_ptr + rows[:, None] * K + ks[None, :]
    up_rows = weight_rows + N.to(tl.int64) * K
    exact: tl.constexpr = NATIVE and weight_ptr.dtype.element_ty == tl.int8
    acc = tl.zeros([BLOCK_N, BLOCK_M * 2], tl.int32 if exact else tl.float32)
    up = tl.zeros([BLOCK_N, BLOCK_M * 2], tl.int32 if exact else tl.float32)
    used = (terms < 2 * M)[:, None]
    for start in tl.range(first_k, last_k, BLOCK_K, num_stages=NUM_STAGES):
        in_range = ks < K - start
        if EVEN_K:
            x = tl.load(codes_at + start, mask=used, other=0.0)
        else:
            x = tl.load(codes_at + start, mask=used & in_range[None, :], other=0.0)
        acc = _product(weight_rows, start, x, in_range, acc, EVEN_K, BLOCK_K, NATIVE)
        if GATED:
            up = _product(up_rows, start, x, in_range, up, EVEN_K, BLOCK_K, NATIVE)
    token_scales = tl.load(token_scale_ptr + tokens, mask=tokens < M, other=0.0)
    total = _joined(acc, token_scales, tl.load(scale_ptr + rows), SECOND, BLOCK_N, BLOCK_M)
    total_up = total
    if GATED:
        total_up = _joined(up, token_scales, tl.load(scale_ptr + rows + N), SECOND, BLOCK_N, BLOCK_M)
    finish_transposed(total, total_up, bias_ptr, out_ptr, partial_ptr, arrived, features, tokens, M, N, BLOCK_M,
                      BLOCK_N, SPLIT_K, GATED, HAS_BIAS)  # fmt: skip


def terms_linear(
    x: TwoTerms,
    weight: QuantizedWeight,
    bias: Tensor | None = None,
    *,
    out_dtype: torch.dtype,
    gated: bool = False,
    pdl: bool = False,
    config: LinearConfig | None = None,
) -> Tensor:
    """x [M, K] times the weight [N, K] transposed, plus bias [N]; returns [M, N]. The weight's codes are of x's dtype,
    with a scale a row, and K is a multiple of 16.

    gated: the weight is [2 * N, K] and the result silu_and_mul of the product.
    """
    (num_tokens, _, k), rows = x.codes.shape, weight.num_rows
    n = rows // 2 if gated else rows
    config = config or choose_config(num_tokens, n, k, gated)
    out = torch.empty((num_tokens, n), dtype=out_dtype, device=x.codes.device)
    grid, partial = config.cut(num_tokens, n, out.device, gated=gated)
    _terms_linear_kernel(
        grid,
        x.codes,
        x.scales,
        weight.codes,
        weight.scales,
        weight.codes if bias is None else bias,
        out,
        partial,
        arrival_counters(out.device),
        num_tokens,
        n,
        k,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        SPLIT_K=config.split_k,
        EVEN_K=k % (config.block_k * config.split_k) == 0,
        NUM_STAGES=config.num_stages,
        GATED=gated,
        HAS_BIAS=bias is not None,
        NATIVE=out.is_cuda,
        SECOND=SECOND_TERM[weight.codes.dtype],
        PREFETCH_K=config.prefetch_bytes // (rows // n * config.block_n),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        pdl=can_launch_early(out, pdl and config.pdl),
    )
    return out


@functools.cache
def choose_config(num_tokens: int, n: int, k: int, gated: bool) -> LinearConfig:
    """The tile for num_tokens tokens and a weight of n rows (twice that if gated) of k columns; measured on an H200."""
    wide, narrow = n > 8192, n <= 4096
    if num_tokens <= 16:
        if gated or wide:
            config = LinearConfig(16, 64, 128, num_stages=4 if gated else 5)
        else:
            config = LinearConfig(16, 64, 256 if narrow else 128, split_k=4 if narrow else 2, num_stages=4)
    elif num_tokens <= 32:
        config = LinearConfig(32, 64, 128 if wide else 256, split_k=1 if wide else 2, num_stages=4)
    elif wide:
        config = LinearConfig(64, 128, 128, num_warps=8, num_stages=4)
    else:
        config = LinearConfig(32, 64, 256, num_stages=4) if narrow else LinearConfig(64, 64, 128, num_stages=5)
    return replace(config, split_k=1 if gated else config.split_k, pdl=n * k <= 2**25)
