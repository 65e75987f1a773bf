"""Linear layers for a handful of tokens up to some tiles of them, over weights of 8 bits.

x [M, K] times weight [N, K] transposed on the matrix units. The weight is the first operand, dequantized in registers
on its way there, and tokens are the columns: out^T = W x^T. A scale for a whole row waits for the end; scales of groups
are applied to the weight, rounded to x's dtype as a dequantized weight would be. K may be cut over several blocks
(split-K); partial sums meet in float32 and are added in their fixed order by the last block to arrive.

Ours, because torch's int8 kernel is slower beyond one token than its plain product is beyond 16, and it knows no e4m3
weights beside 16-bit activations (benchmarks/gpu/cases_quant times them).
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

from engines.native.kernels.triton_kernel import kernel
from engines.native.kernels.triton_launch import (
    arrival_counters,
    can_launch_early,
    fit_groups,
)
from engines.native.kernels.triton_linear import LinearConfig
from engines.native.kernels.triton_split_k import begin_split, finish_transposed
from engines.native.quantization.weight import QuantizedWeight


@triton.jit
def _e4m3_to_bfloat16(codes):
    """Exponent and mantissa moved to where bfloat16 has them, and the difference of the two biases multiplied in.

    Triton's own conversion goes through float32 at an eighth of the rate of these instructions. Subnormal numbers are
    right too: bfloat16 multiplications do not flush them.
    """
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 bytes, shifted, pair, bias;
        mov.b32 bias, 0x7b807b80;
        prmt.b32 bytes, $2, 0, 0x1404;
        shr.u32 shifted, bytes, 4;
        and.b32 shifted, shifted, 0x07f007f0;
        lop3.b32 pair, bytes, 0x80008000, shifted, 0xea;
        mul.rn.bf16x2 $0, pair, bias;
        prmt.b32 bytes, $2, 0, 0x3424;
        shr.u32 shifted, bytes, 4;
        and.b32 shifted, shifted, 0x07f007f0;
        lop3.b32 pair, bytes, 0x80008000, shifted, 0xea;
        mul.rn.bf16x2 $1, pair, bias;
        }""",
        "=&r,=&r,r",
        [codes.to(tl.uint8, bitcast=True)],
        dtype=tl.bfloat16,
        is_pure=True,
        pack=4,
    )


@triton.jit
def _int8_to_bfloat16(codes):
    """A byte plus 128 under the exponent of 2**23 is a float32 that much larger; bytes are exact in bfloat16."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 bytes, word;
        .reg .f32 a, b;
        xor.b32 bytes, $2, 0x80808080;
        prmt.b32 word, bytes, 0x4b000000, 0x7650;
        mov.b32 a, word;
        prmt.b32 word, bytes, 0x4b000000, 0x7651;
        mov.b32 b, word;
        sub.f32 a, a, 0f4B000080;
        sub.f32 b, b, 0f4B000080;
        cvt.rn.bf16x2.f32 $0, b, a;
        prmt.b32 word, bytes, 0x4b000000, 0x7652;
        mov.b32 a, word;
        prmt.b32 word, bytes, 0x4b000000, 0x7653;
        mov.b32 b, word;
        sub.f32 a, a, 0f4B000080;
        sub.f32 b, b, 0f4B000080;
        cvt.rn.bf16x2.f32 $1, b, a;
        }""",
        "=&r,=&r,r",
        [codes],
        dtype=tl.bfloat16,
        is_pure=True,
        pack=4,
    )


@triton.jit
def _bytes_tile(weight_rows, scale_rows, start, in_range, row_groups, EVEN_K: tl.constexpr, GROUP: tl.constexpr,
                GROUPS: tl.constexpr, ASM: tl.constexpr, dtype):  # fmt: skip
    """Codes [BLOCK_N, BLOCK_K] in `dtype`; times their groups' scales where those are narrower than a row."""
    if EVEN_K:
        codes = tl.load(weight_rows + start)
    else:
        codes = tl.load(weight_rows + start, mask=in_range[None, :], other=0.0)
    if ASM:
        if codes.dtype == tl.int8:
            values = _int8_to_bfloat16(codes)
        else:
            values = _e4m3_to_bfloat16(codes)
    else:
        values = codes.to(tl.float32)
    if GROUP > 0:
        groups = start // GROUP + tl.arange(0, GROUPS)
        scales = tl.load(scale_rows + groups[None, :], mask=(groups < row_groups)[None, :], other=0.0).to(tl.float32)
        wide = tl.broadcast_to(scales[:, :, None], (values.shape[0], GROUPS, values.shape[1] // GROUPS))
        values = values.to(tl.float32) * tl.reshape(wide, values.shape)
    return values.to(dtype)


@kernel(varying=["M"])
def _byte_linear_kernel(
    x_ptr,  # [M, K]
    weight_ptr,  # int8 or e4m3 [N, K], or [2 * N, K] if GATED
    scale_ptr,  # [N or 2 * N, groups]
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
    GROUP: tl.constexpr,  # 0: a scale for a row; divides BLOCK_K otherwise, or the other way round
    GROUPS: tl.constexpr,  # in BLOCK_K columns, at least 1
    SPLIT_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ASM: tl.constexpr,
    PREFETCH_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (cdiv(N, BLOCK_N), SPLIT_K, cdiv(M, BLOCK_M))."""
    tokens = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    features = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first_k, last_k = begin_split(weight_ptr, N, K, BLOCK_N, BLOCK_K, SPLIT_K, GATED, PREFETCH_K, PDL)

    ks = tl.arange(0, BLOCK_K)
    rows = tl.minimum(features, N - 1).to(tl.int64)
    up_rows = rows + N
    groups = K // GROUP if GROUP > 0 else 1
    x_rows = x_ptr + tokens.to(tl.int64)[:, None] * x_stride + ks[None, :]
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    up = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in tl.range(first_k, last_k, BLOCK_K, num_stages=NUM_STAGES):
        in_range = ks < K - start
        if EVEN_K:
            x = tl.load(x_rows + start, mask=(tokens < M)[:, None], other=0.0)
        else:
            x = tl.load(x_rows + start, mask=(tokens < M)[:, None] & in_range[None, :], other=0.0)
        weight = _bytes_tile(
            weight_ptr + rows[:, None] * K + ks[None, :], scale_ptr + rows[:, None] * groups, start, in_range,
            groups, EVEN_K, GROUP, GROUPS, ASM, x.dtype,
        )  # fmt: skip
        acc = tl.dot(weight, tl.trans(x), acc, input_precision="ieee")
        if GATED:
            up_weight = _bytes_tile(
                weight_ptr + up_rows[:, None] * K + ks[None, :], scale_ptr + up_rows[:, None] * groups, start,
                in_range, groups, EVEN_K, GROUP, GROUPS, ASM, x.dtype,
            )  # fmt: skip
            up = tl.dot(up_weight, tl.trans(x), up, input_precision="ieee")
    if GROUP == 0:
        acc *= tl.load(scale_ptr + rows).to(tl.float32)[:, None]
        if GATED:
            up *= tl.load(scale_ptr + up_rows).to(tl.float32)[:, None]
    finish_transposed(acc, up, bias_ptr, out_ptr, partial_ptr, arrived, features, tokens, M, N, BLOCK_M, BLOCK_N,
                      SPLIT_K, GATED, HAS_BIAS)  # fmt: skip


def quantized_linear(
    x: Tensor,
    weight: QuantizedWeight,
    bias: Tensor | None = None,
    *,
    gated: bool = False,
    out_dtype: torch.dtype | None = None,
    pdl: bool = False,
    config: LinearConfig | None = None,
) -> Tensor:
    """x [M, K] times the weight [N, K] transposed, plus bias [N]; returns [M, N].

    gated: the weight is [2 * N, K] and the result silu_and_mul of the product. As triton_linear.linear otherwise; rows
    of x may be strided. K is a multiple of 16.
    """
    (num_tokens, k), rows = x.shape, weight.num_rows
    n = rows // 2 if gated else rows
    group = weight.group_size if weight.scales.shape[1] > 1 else 0
    config = config or choose_config(num_tokens, n, k, group, gated)
    out = torch.empty((num_tokens, n), dtype=out_dtype or x.dtype, device=x.device)
    grid, partial = config.cut(num_tokens, n, x.device, gated=gated)
    prefetch = config.prefetch_bytes // (rows // n * config.block_n * weight.codes.element_size())
    _byte_linear_kernel(
        grid,
        x,
        weight.codes,
        weight.scales,
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
        GROUP=group,
        GROUPS=max(config.block_k // group, 1) if group else 1,
        SPLIT_K=config.split_k,
        EVEN_K=k % (config.block_k * config.split_k) == 0,
        NUM_STAGES=config.num_stages,
        GATED=gated,
        HAS_BIAS=bias is not None,
        ASM=x.is_cuda and x.dtype == torch.bfloat16,
        PREFETCH_K=prefetch,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        pdl=can_launch_early(x, pdl and config.pdl),
    )
    return out


@functools.cache
def choose_config(num_tokens: int, n: int, k: int, group: int, gated: bool) -> LinearConfig:
    """The tile for num_tokens tokens and a weight of n rows (twice that if gated) of k columns, in groups unless 0."""
    block_m = 16 if num_tokens <= 16 else 32 if num_tokens <= 32 else 64 if num_tokens <= 64 else 128
    small = n * k <= 2**25
    split_k = 1 if gated or n > 8192 else 2 if block_m > 16 and (n > 4096 or k <= 4096) else 4
    block_k = fit_groups(128, group) if group else 128
    num_stages = 4 if gated or (block_m == 16 and small) else 5
    return LinearConfig(block_m, 64, block_k, split_k=split_k, num_stages=num_stages, pdl=small)
