"""Linear layers for one token over weights of 8 and of 4 bits: dequantized in registers, summed in float32.

Bound by reading the codes. The bytes' kernel is the plain weights' (triton_gemv) with a scale at the end or a scale for
each group. The words' kernel takes nibble i of four words at once against four neighbouring columns of x; a nibble
becomes a number by setting the exponent of a bfloat16 above it, which makes 128 + code out of two codes in one
instruction, and the 128 is taken off the group's sum.

Ours, because the libraries' kernels (torch's tinygemm and int8 matmul; see benchmarks/gpu/cases_quant) take neither
the norm and the residual addition along nor an early launch, which are a third of a decode step of one token.
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

_WORD_COLUMNS = tl.constexpr(8)
_CHUNK = tl.constexpr(32)


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
def _store_outputs(acc, up, squares, columns, bias_ptr, out_ptr, N, K, eps, NORM: tl.constexpr, GATED: tl.constexpr,
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
    _store_outputs(acc, up, tl.sum(squares, axis=0), columns, bias_ptr, out_ptr, N, K, eps, NORM, GATED, HAS_BIAS)


@triton.jit
def _nibbles(words):
    """Eight tensors: 128 + nibble i of each word, in float32.

    A bfloat16 of 128 has seven bits of mantissa below it, of which a nibble takes four. Shift and mask leave nibbles i
    and i + 4 in the two halves of a word, one instruction sets both exponents, and a bfloat16 is the upper half of a
    float32.
    """
    n0, n1, n2, n3, n4, n5, n6, n7 = tl.inline_asm_elementwise(
        """{
        .reg .b32 word, pair;
        lop3.b32 pair, $8, 0x000f000f, 0x43004300, 0xea;
        shl.b32 $0, pair, 16;
        and.b32 $4, pair, 0xffff0000;
        shr.u32 word, $8, 4;
        lop3.b32 pair, word, 0x000f000f, 0x43004300, 0xea;
        shl.b32 $1, pair, 16;
        and.b32 $5, pair, 0xffff0000;
        shr.u32 word, $8, 8;
        lop3.b32 pair, word, 0x000f000f, 0x43004300, 0xea;
        shl.b32 $2, pair, 16;
        and.b32 $6, pair, 0xffff0000;
        shr.u32 word, $8, 12;
        lop3.b32 pair, word, 0x000f000f, 0x43004300, 0xea;
        shl.b32 $3, pair, 16;
        and.b32 $7, pair, 0xffff0000;
        }""",
        "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r",
        [words],
        dtype=(tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32),
        is_pure=True,
        pack=1,
    )
    return (
        n0.to(tl.float32, bitcast=True),
        n1.to(tl.float32, bitcast=True),
        n2.to(tl.float32, bitcast=True),
        n3.to(tl.float32, bitcast=True),
        n4.to(tl.float32, bitcast=True),
        n5.to(tl.float32, bitcast=True),
        n6.to(tl.float32, bitcast=True),
        n7.to(tl.float32, bitcast=True),
    )


@triton.jit
def _word_products(words, x0, x1, x2, x3, x4, x5, x6, x7, ASM: tl.constexpr):
    """words [BLOCK_N, BLOCK_C, 4] and the columns of x of each nibble [BLOCK_C, 4]: sums [BLOCK_N, BLOCK_C] over each
    chunk of x times 128 + code."""
    if ASM:
        n0, n1, n2, n3, n4, n5, n6, n7 = _nibbles(words)
    else:
        n0 = (words & 15).to(tl.float32) + 128
        n1 = ((words >> 4) & 15).to(tl.float32) + 128
        n2 = ((words >> 8) & 15).to(tl.float32) + 128
        n3 = ((words >> 12) & 15).to(tl.float32) + 128
        n4 = ((words >> 16) & 15).to(tl.float32) + 128
        n5 = ((words >> 20) & 15).to(tl.float32) + 128
        n6 = ((words >> 24) & 15).to(tl.float32) + 128
        n7 = ((words >> 28) & 15).to(tl.float32) + 128
    total = n0 * x0[None] + n1 * x1[None] + n2 * x2[None] + n3 * x3[None]
    total += n4 * x4[None] + n5 * x5[None] + n6 * x6[None] + n7 * x7[None]
    return tl.sum(total, axis=2)


@triton.jit
def _scaled(sums, x_sums, scale_ptr, offset_ptr, rows, chunks, in_range, NUM_GROUPS, GROUP: tl.constexpr,
            HAS_OFFSETS: tl.constexpr):  # fmt: skip
    """Sums over x * (128 + code) to sums over x times the weight."""
    at = rows[:, None] * NUM_GROUPS + (chunks * _CHUNK // GROUP)[None, :]
    scales = tl.load(scale_ptr + at, mask=in_range[None, :], other=0.0).to(tl.float32)
    result = (sums - 136.0 * x_sums[None, :]) * scales
    if HAS_OFFSETS:
        result += x_sums[None, :] * tl.load(offset_ptr + at, mask=in_range[None, :], other=0.0).to(tl.float32)
    return result


@kernel()
def _word_gemv_kernel(
    x_ptr,  # [K]
    residual_ptr,  # [K], added to x before the norm; unused without HAS_RESIDUAL
    norm_weight_ptr,  # [K], unused without NORM
    weight_ptr,  # int32 words [N, K / 8], or [2 * N, K / 8] if GATED
    scale_ptr,  # [N or 2 * N, K / GROUP]
    offset_ptr,  # the same, unused without HAS_OFFSETS
    bias_ptr,
    out_ptr,  # [N]
    sum_ptr,  # [K]: x + residual
    N,
    K,
    eps,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,  # chunks of 32 columns at a time
    GROUP: tl.constexpr,
    HAS_OFFSETS: tl.constexpr,
    NORM: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ASM: tl.constexpr,
    PREFETCH_WORDS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (cdiv(N, BLOCK_N),)."""
    block = tl.program_id(0)
    columns = block * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.minimum(columns, N - 1).to(tl.int64)
    row_words = K // _WORD_COLUMNS
    release_successor(PDL)
    if PDL and PREFETCH_WORDS > 0:
        prefetch_weights(weight_ptr, block * BLOCK_N, N, 0, row_words, BLOCK_N, PREFETCH_WORDS)
        if GATED:
            prefetch_weights(weight_ptr, N + block * BLOCK_N, 2 * N, 0, row_words, BLOCK_N, PREFETCH_WORDS)
    wait_for_predecessor(PDL)

    acc = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    up_acc = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_C, 4], tl.float32)
    places = tl.arange(0, 4)
    for start in range(0, K // _CHUNK, BLOCK_C):
        chunks = start + tl.arange(0, BLOCK_C)
        in_range = chunks < K // _CHUNK
        at = rows[:, None, None] * row_words + (chunks * 4)[None, :, None] + places[None, None, :]
        words = tl.load(weight_ptr + at, mask=in_range[None, :, None], other=0)
        if GATED:
            up_words = tl.load(weight_ptr + at + N.to(tl.int64) * row_words, mask=in_range[None, :, None], other=0)
        first = (chunks * _CHUNK)[:, None] + places[None, :]
        mask = in_range[:, None] & (places < 4)[None, :]
        stored = mask & (block + tl.zeros_like(first) == 0)
        x0, s0 = _load_x(x_ptr, residual_ptr, norm_weight_ptr, sum_ptr, first, mask, stored, NORM, HAS_RESIDUAL)
        x1, s1 = _load_x(x_ptr, residual_ptr, norm_weight_ptr, sum_ptr, first + 4, mask, stored, NORM, HAS_RESIDUAL)
        x2, s2 = _load_x(x_ptr, residual_ptr, norm_weight_ptr, sum_ptr, first + 8, mask, stored, NORM, HAS_RESIDUAL)
        x3, s3 = _load_x(x_ptr, residual_ptr, norm_weight_ptr, sum_ptr, first + 12, mask, stored, NORM, HAS_RESIDUAL)
        x4, s4 = _load_x(x_ptr, residual_ptr, norm_weight_ptr, sum_ptr, first + 16, mask, stored, NORM, HAS_RESIDUAL)
        x5, s5 = _load_x(x_ptr, residual_ptr, norm_weight_ptr, sum_ptr, first + 20, mask, stored, NORM, HAS_RESIDUAL)
        x6, s6 = _load_x(x_ptr, residual_ptr, norm_weight_ptr, sum_ptr, first + 24, mask, stored, NORM, HAS_RESIDUAL)
        x7, s7 = _load_x(x_ptr, residual_ptr, norm_weight_ptr, sum_ptr, first + 28, mask, stored, NORM, HAS_RESIDUAL)
        squares += ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))
        x_sums = tl.sum(((x0 + x1) + (x2 + x3)) + ((x4 + x5) + (x6 + x7)), axis=1)
        sums = _word_products(words, x0, x1, x2, x3, x4, x5, x6, x7, ASM)
        acc += _scaled(sums, x_sums, scale_ptr, offset_ptr, rows, chunks, in_range, K // GROUP, GROUP, HAS_OFFSETS)
        if GATED:
            sums = _word_products(up_words, x0, x1, x2, x3, x4, x5, x6, x7, ASM)
            up_acc += _scaled(
                sums, x_sums, scale_ptr, offset_ptr, rows + N, chunks, in_range, K // GROUP, GROUP, HAS_OFFSETS
            )
    squares_sum = tl.sum(tl.sum(squares, axis=1), axis=0)
    _store_outputs(
        tl.sum(acc, axis=1), tl.sum(up_acc, axis=1), squares_sum, columns, bias_ptr, out_ptr, N, K, eps, NORM, GATED,
        HAS_BIAS,
    )  # fmt: skip


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

    As triton_gemv.gemv, for the formats int8, fp8 and int4; K is a multiple of 16, for int4 of 32. block_k of the
    configuration counts columns.
    """
    rows, k = weight.shape
    assert x.shape == (1, k)
    assert residual is None or norm_weight is not None
    n = rows // 2 if gated else rows
    in_words = weight.format.name == "int4"
    per_item = weight.format.codes_per_item
    config = config or choose_config(n, k, in_words, gated)
    out = torch.empty((1, n), dtype=out_dtype or x.dtype, device=x.device)
    total = x if residual is None else torch.empty_like(x)
    prefetch = config.prefetch_bytes // (rows // n * config.block_n * weight.codes.element_size())
    fused = {
        "NORM": norm_weight is not None,
        "HAS_RESIDUAL": residual is not None,
        "GATED": gated,
        "HAS_BIAS": bias is not None,
        "num_warps": config.num_warps,
        "pdl": can_launch_early(x, pdl and config.pdl),
    }
    before = (x, x if residual is None else residual, x if norm_weight is None else norm_weight, weight.codes)
    after = (weight.codes if bias is None else bias, out, total, n, k, eps)
    grid = (div_ceil(n, config.block_n),)
    if in_words:
        offsets = weight.scales if weight.offsets is None else weight.offsets
        _word_gemv_kernel(
            grid,
            *before,
            weight.scales,
            offsets,
            *after,
            BLOCK_N=config.block_n,
            BLOCK_C=config.block_k // 32,
            GROUP=weight.group_size,
            HAS_OFFSETS=weight.offsets is not None,
            ASM=x.is_cuda,
            PREFETCH_WORDS=prefetch,
            **fused,
        )
    else:
        assert per_item == 1
        _byte_gemv_kernel(
            grid,
            *before,
            weight.scales,
            *after,
            BLOCK_N=config.block_n,
            BLOCK_K=config.block_k,
            GROUP=weight.group_size if weight.scales.shape[1] > 1 else 0,
            PREFETCH_K=prefetch,
            **fused,
        )
    return out, total


@functools.cache
def choose_config(n: int, k: int, in_words: bool, gated: bool) -> GemvConfig:
    """For a weight of n rows (twice that if gated) of k columns: as many bytes a block as the plain weights' kernel."""
    widest = next_power_of_2(k)
    pdl = n * k <= 2**25
    if in_words:
        # Four rows of words a thread: with eight, x and the words take all 255 registers.
        return GemvConfig(block_n=8 if gated else 16, block_k=min(1024, max(32, widest)), pdl=pdl)
    return GemvConfig(block_n=4, block_k=min(1024 if gated else 2048, max(16, widest)), pdl=pdl)
