"""Linear layers for one token over 4-bit weights: its vector times the weight, on the ordinary cores.

The plain weights' kernel (triton_gemv) over chunks of 32 columns (triton_int4_chunks), of the same weight that the
tiles for more tokens read. The first columns' words are loaded before the predecessor is done: no kernel writes them.
The norm is a kernel of its own: taken along, every block would normalize the vector again, which took longer.

The plain PyTorch twin is a product with QuantizedWeight.dequantize.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from engines.native.kernels.triton_int4_chunks import chunk_products, load_affine, load_factors, load_words
from engines.native.kernels.triton_int4_weight import Int4Weight
from engines.native.kernels.triton_kernel import kernel
from engines.native.kernels.triton_launch import (
    can_launch_early,
    div_ceil,
    prefetch_weights,
    release_successor,
    wait_for_predecessor,
)
from engines.native.kernels.triton_quantized_gemv import store_outputs

ENOUGH_WARPS = 1536  # 12 for each multiprocessor of an H100, with 2 or 4 KiB on the way each


@dataclass(frozen=True, slots=True)
class Int4GemvConfig:
    """A block sums two sets of block_n rows, block_k columns at a time: 1024 a warp, so that a thread has a chunk."""

    block_n: int
    block_k: int
    num_warps: int
    early: bool = True  # whether the first columns' words are loaded before the predecessor is done, if launched so
    prefetch_bytes: int = 0  # of a block's words, asked for before the predecessor is done
    pdl: bool = True


@kernel()
def _int4_gemv_kernel(
    x_ptr,  # [K]
    weight_ptr,  # int32 words [N, K / 8], or [2 * N, K / 8] if GATED
    affine_ptr,  # [N or 2 * N, K / GROUP, 2] of 16 bits; [.., 1] with a TABLE
    bias_ptr,
    out_ptr,  # [N]
    N,
    K,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,  # a multiple of 32
    EVEN: tl.constexpr,  # BLOCK_K divides K
    MANY_STEPS: tl.constexpr,  # K > BLOCK_K
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TABLE: tl.constexpr,
    ASM: tl.constexpr,
    EARLY: tl.constexpr,
    PREFETCH_WORDS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (cdiv(N, BLOCK_N if GATED else 2 * BLOCK_N),).

    A block has two sets of BLOCK_N rows, since making x's factors costs as much as some rows: gate and up, or one after
    the other. While one is multiplied, the words of the next are on their way.
    """
    CHUNKS: tl.constexpr = BLOCK_K // 32
    WORDS: tl.constexpr = BLOCK_K // 8
    first_row = tl.program_id(0) * (BLOCK_N if GATED else 2 * BLOCK_N)
    columns = first_row + tl.arange(0, BLOCK_N)
    rows = tl.minimum(columns, N - 1)
    rows_b = rows + N if GATED else tl.minimum(columns + BLOCK_N, N - 1)
    chunks = K // 32
    groups_ptr = affine_ptr if TABLE != "" else affine_ptr.to(tl.pointer_type(tl.int32))
    release_successor(PDL)
    if PDL and PREFETCH_WORDS > 0:
        prefetch_weights(weight_ptr, first_row, N, 0, chunks * 4, BLOCK_N if GATED else 2 * BLOCK_N, PREFETCH_WORDS)
        if GATED:
            prefetch_weights(weight_ptr, N + first_row, 2 * N, 0, chunks * 4, BLOCK_N, PREFETCH_WORDS)
    if not EARLY:
        wait_for_predecessor(PDL)
    words = load_words(weight_ptr, rows, 0, chunks * 4, EVEN, False, WORDS)
    affine = load_affine(groups_ptr, rows, 0, chunks, GROUP, EVEN, False, CHUNKS)
    if not MANY_STEPS:
        words_b = load_words(weight_ptr, rows_b, 0, chunks * 4, EVEN, False, WORDS)
        affine_b = load_affine(groups_ptr, rows_b, 0, chunks, GROUP, EVEN, False, CHUNKS)
    if EARLY:
        wait_for_predecessor(PDL)

    dtype: tl.constexpr = affine_ptr.dtype.element_ty
    products = tl.zeros([BLOCK_N, CHUNKS], tl.float32)
    products_b = tl.zeros([BLOCK_N, CHUNKS], tl.float32)
    for start in range(0, K, BLOCK_K):
        step = start // BLOCK_K
        if MANY_STEPS:
            words_b = load_words(weight_ptr, rows_b, step, chunks * 4, EVEN, False, WORDS)
            affine_b = load_affine(groups_ptr, rows_b, step, chunks, GROUP, EVEN, False, CHUNKS)
        factors, x_step, total = load_factors(x_ptr, step, K, EVEN, CHUNKS, TABLE, ASM)
        products += chunk_products(words, affine, dtype, factors, x_step, total, BLOCK_N, CHUNKS, TABLE, ASM)
        if MANY_STEPS:
            words = load_words(weight_ptr, rows, step + 1, chunks * 4, EVEN, True, WORDS)
            affine = load_affine(groups_ptr, rows, step + 1, chunks, GROUP, EVEN, True, CHUNKS)
        products_b += chunk_products(words_b, affine_b, dtype, factors, x_step, total, BLOCK_N, CHUNKS, TABLE, ASM)
    acc = tl.sum(products, axis=1)
    acc_b = tl.sum(products_b, axis=1)
    store_outputs(acc, acc_b, 0.0, columns, bias_ptr, out_ptr, N, K, 0.0, False, GATED, HAS_BIAS)
    if not GATED:
        store_outputs(acc_b, acc_b, 0.0, columns + BLOCK_N, bias_ptr, out_ptr, N, K, 0.0, False, False, HAS_BIAS)


def int4_gemv(
    x: Tensor,
    weight: Int4Weight,
    bias: Tensor | None = None,
    *,
    gated: bool = False,
    out_dtype: torch.dtype | None = None,
    pdl: bool = False,
    config: Int4GemvConfig | None = None,
) -> Tensor:
    """x [1, K] times the weight [N, K] transposed, plus bias [N]; see can_multiply.

    gated: the weight is [2 * N, K] and the result silu_and_mul of the product. x is rounded to 16 bits of the largest
    in its chunk.
    """
    rows, k = weight.shape
    assert x.shape == (1, k)
    assert can_multiply(weight)
    n = rows // 2 if gated else rows
    config = config or choose_config(n, k, gated=gated)
    out = torch.empty((1, n), dtype=out_dtype or x.dtype, device=x.device)
    _int4_gemv_kernel(
        (div_ceil(n, config.block_n if gated else 2 * config.block_n),),
        x,
        weight.codes,
        weight.affine,
        weight.codes if bias is None else bias,
        out,
        n,
        k,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        GROUP=weight.group_size,
        EVEN=k % config.block_k == 0,
        MANY_STEPS=k > config.block_k,
        GATED=gated,
        HAS_BIAS=bias is not None,
        TABLE=weight.table,
        ASM=x.is_cuda,
        EARLY=config.early,
        PREFETCH_WORDS=config.prefetch_bytes // (2 * config.block_n * 4),
        num_warps=config.num_warps,
        pdl=can_launch_early(x, pdl and config.pdl),
    )
    return out


def can_multiply(weight: Int4Weight) -> bool:
    """A group's scale and offset are one word, and words are counted in 32 bits."""
    return weight.affine.element_size() == 2 and weight.codes.numel() < 2**31


@functools.cache
def choose_config(n: int, k: int, *, gated: bool = False) -> Int4GemvConfig:
    """For a weight of n rows (twice that if gated) of k columns, from compiled code; see benchmarks/gpu/NOTES.md.

    Sixteen rows a thread repay best what making x's factors costs, and a warp that has its rows to itself sums them up
    but once. Where that leaves fewer warps than bring enough bytes at a time, a block has half the rows, and several
    warps share their columns as long as no more than a fifth of these are beyond the row.
    """
    rows = n * (1 + gated)
    if rows >= 16 * ENOUGH_WARPS:
        return Int4GemvConfig(8, 1024, 1)
    num_warps = next((w for w in (1, 2) if rows * w >= 8 * ENOUGH_WARPS), 4)
    while num_warps > 1 and div_ceil(k, 1024 * num_warps) * 1024 * num_warps > 1.25 * k:
        num_warps //= 2
    return Int4GemvConfig(4, 1024 * num_warps, num_warps)
