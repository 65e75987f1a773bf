"""Linear layers over 4-bit weights, for a handful of tokens up to some tiles of them.

x [M, K] times weight [N, K] transposed on the matrix units. The weight is the first operand and is dequantized in the
registers that it is multiplied from: out^T = W x^T. K may be cut over several blocks (split-K); partial sums meet in
float32 and are added in their fixed order by the last block to arrive.

Ours, because torch's tinygemm is slower beyond one token than its plain product is beyond 16
(benchmarks/gpu/cases_quant times it). The plain PyTorch twin is a product with QuantizedWeight.dequantize.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

from __future__ import annotations

import functools
from dataclasses import replace

import torch
import triton.language as tl
from torch import Tensor

from engines.native.kernels.triton_int4_weight import Int4Weight, weight_tile
from engines.native.kernels.triton_kernel import kernel
from engines.native.kernels.triton_launch import (
    arrival_counters,
    can_launch_early,
    fit_groups,
    prefetch_weights,
    release_successor,
    wait_for_predecessor,
)
from engines.native.kernels.triton_linear import LinearConfig
from engines.native.kernels.triton_split_k import finish_transposed


@kernel(varying=["M"])
def _int4_linear_kernel(
    x_ptr,  # [M, K]
    weight_ptr,  # int32 words [N, K / 8]
    affine_ptr,  # [N, K / GROUP, AFFINE]
    bias_ptr,
    out_ptr,  # [M, N]
    partial_ptr,  # [tiles, SPLIT_K, BLOCK_N, BLOCK_M] float32, unused with SPLIT_K == 1
    arrived,
    M,
    N,
    K,
    x_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,  # divides BLOCK_K, or the other way round
    GROUPS: tl.constexpr,  # in BLOCK_K columns, at least 1
    SPLIT_K: tl.constexpr,
    EVEN: tl.constexpr,  # BLOCK_K divides K
    NUM_STAGES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TABLE: tl.constexpr,
    ASM: tl.constexpr,
    PREFETCH_WORDS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (cdiv(N, BLOCK_N), SPLIT_K, cdiv(M, BLOCK_M))."""
    AFFINE: tl.constexpr = 1 if TABLE != "" else 2  # pyright: ignore[reportAssignmentType]
    tile, split = tl.program_id(0), tl.program_id(1)
    tokens = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    features = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    row_words = K // 32 * 4
    row_affine = K // GROUP * AFFINE
    if EVEN:  # from which Triton can tell that rows are aligned
        row_words = K // BLOCK_K * (BLOCK_K // 8)
        row_affine = K // (GROUPS * GROUP) * (GROUPS * AFFINE)
    num_steps = tl.cdiv(K, BLOCK_K)
    first_step = split * tl.cdiv(num_steps, SPLIT_K)
    last_step = tl.minimum(first_step + tl.cdiv(num_steps, SPLIT_K), num_steps)
    release_successor(PDL)
    if PDL and PREFETCH_WORDS > 0:
        first_word = first_step * (BLOCK_K // 8)
        prefetch_weights(weight_ptr, tile * BLOCK_N, N, first_word, row_words, BLOCK_N, PREFETCH_WORDS)
    wait_for_predecessor(PDL)

    rows = tl.minimum(features, N - 1).to(tl.int64)
    words_at = weight_ptr + rows[:, None] * row_words + tl.arange(0, BLOCK_K // 8)[None, :]
    affine_at = affine_ptr + rows[:, None] * row_affine + tl.arange(0, GROUPS * AFFINE)[None, :]
    x_at = x_ptr + tokens.to(tl.int64)[:, None] * x_stride + tl.arange(0, BLOCK_K)[None, :]
    used = (tokens < M)[:, None]
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for step in tl.range(first_step, last_step, num_stages=NUM_STAGES):
        group = step * GROUPS if GROUP < BLOCK_K else step * BLOCK_K // GROUP
        if EVEN:
            x = tl.load(x_at + step * BLOCK_K, mask=used, other=0.0)
            words = tl.load(words_at + step * (BLOCK_K // 8))
            affine = tl.load(affine_at + group * AFFINE)
        else:
            left = K - step * BLOCK_K
            x = tl.load(x_at + step * BLOCK_K, mask=used & (tl.arange(0, BLOCK_K) < left)[None, :], other=0.0)
            in_row = (tl.arange(0, BLOCK_K // 8) * 8 < left)[None, :]
            words = tl.load(words_at + step * (BLOCK_K // 8), mask=in_row, other=0)
            in_row = (tl.arange(0, GROUPS * AFFINE) // AFFINE * GROUP < left)[None, :]
            affine = tl.load(affine_at + group * AFFINE, mask=in_row, other=0)
        weight = weight_tile(words, affine, BLOCK_N, BLOCK_K, GROUPS, TABLE, ASM, x.dtype)
        acc = tl.dot(weight, tl.trans(x), acc, input_precision="ieee")
    finish_transposed(acc, acc, bias_ptr, out_ptr, partial_ptr, arrived, features, tokens, M, N, BLOCK_M, BLOCK_N,
                      SPLIT_K, False, HAS_BIAS)  # fmt: skip


def int4_linear(
    x: Tensor,
    weight: Int4Weight,
    bias: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    pdl: bool = False,
    config: LinearConfig | None = None,
) -> Tensor:
    """x [M, K], whose rows may be strided, times the weight [N, K] transposed, plus bias [N]; returns [M, N].

    K is a multiple of 32.
    """
    num_tokens, (n, k) = x.shape[0], weight.shape
    config = config or choose_config(num_tokens, n, k, weight.group_size, looks_up=weight.table != "")
    out = torch.empty((num_tokens, n), dtype=out_dtype or x.dtype, device=x.device)
    grid, partial = config.cut(num_tokens, n, x.device, gated=False)
    _int4_linear_kernel(
        grid,
        x,
        weight.codes,
        weight.affine,
        weight.codes if bias is None else bias,
        out,
        partial,
        arrival_counters(x.device),
        num_tokens,
        n,
        k,
        x.stride(0),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        GROUP=weight.group_size,
        GROUPS=max(config.block_k // weight.group_size, 1),
        SPLIT_K=config.split_k,
        EVEN=k % config.block_k == 0,
        NUM_STAGES=config.num_stages,
        HAS_BIAS=bias is not None,
        TABLE=weight.table,
        ASM=x.is_cuda,
        PREFETCH_WORDS=config.prefetch_bytes // (4 * config.block_n),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        pdl=can_launch_early(x, pdl and config.pdl),
    )
    return out


@functools.cache
def choose_config(num_tokens: int, n: int, k: int, group_size: int, *, looks_up: bool = False) -> LinearConfig:
    """The tile for num_tokens tokens and a weight of n rows of k columns; measured on an H100, those whose codes are
    looked up on an H200."""
    wide = n > 8192
    if num_tokens <= 32:
        config = LinearConfig(16 if num_tokens <= 16 else 32, 64, 256, split_k=1 if wide else 4, num_stages=3)
    elif num_tokens <= 64 and looks_up and (wide or k <= 8192):
        config = LinearConfig(64, 64, 256, split_k=1 if wide else 2, num_stages=3)
    elif num_tokens <= 64 and (wide or k > 8192):
        config = LinearConfig(64, 64, 128, split_k=1 if wide else 4, num_stages=3)
    elif num_tokens <= 128 and not wide:
        config = LinearConfig(64, 64, 256, num_stages=3)
    elif wide:
        config = LinearConfig(128, 128, 128, num_warps=8, num_stages=3)
    else:
        config = LinearConfig(128, 64, 128, num_stages=3)
    block_k = fit_groups(config.block_k, group_size)
    return replace(config, block_k=block_k, pdl=n * k <= 2**25, prefetch_bytes=0)
