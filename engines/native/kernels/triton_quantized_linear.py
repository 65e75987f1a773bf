"""Linear layers for a handful of tokens up to some tiles of them, over weights of 8 and of 4 bits.

x [M, K] times weight [N, K] transposed on the matrix units. The weight is the first operand, dequantized in registers
on its way there, and tokens are the columns: out^T = W x^T. A scale for a whole row waits for the end; scales of groups
are applied to the weight, rounded to x's dtype as a dequantized weight would be. K may be cut over several blocks
(split-K); partial sums meet in float32 and are added in their fixed order by the last block to arrive.

Ours, because torch's int8 and tinygemm kernels are slower beyond one token than its plain product is beyond 16, and
know no e4m3 weights beside 16-bit activations (benchmarks/gpu/cases_quant times them).
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
    ARRIVAL_COUNTERS,
    arrival_counters,
    can_launch_early,
    div_ceil,
    prefetch_weights,
    release_successor,
    wait_for_predecessor,
)
from engines.native.kernels.triton_linear import LinearConfig
from engines.native.quantization.weight import QuantizedWeight


@triton.jit
def _finish(
    acc,
    up,
    bias_ptr,
    out_ptr,
    partial_ptr,
    arrived,
    features,
    tokens,
    M,
    N,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT_K: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """acc and up [BLOCK_N, BLOCK_M] of this split to outputs [M, N], by the last split to arrive."""
    if SPLIT_K > 1:
        flat = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
        cells = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        partials = partial_ptr + flat.to(tl.int64) * (SPLIT_K * BLOCK_M * BLOCK_N) + cells
        used = (tokens < M)[None, :]
        tl.store(partials + tl.program_id(1) * (BLOCK_M * BLOCK_N), acc, mask=used)
        # The barrier puts every thread's stores before thread 0's release.
        tl.debug_barrier()
        if tl.atomic_add(arrived + flat, 1, sem="acq_rel") < SPLIT_K - 1:
            return
        tl.store(arrived + flat, 0)
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for other in tl.static_range(SPLIT_K):
            acc += tl.load(partials + other * (BLOCK_M * BLOCK_N), mask=used, other=0.0, cache_modifier=".cg")
    if HAS_BIAS:
        acc += tl.load(bias_ptr + features, mask=features < N, other=0.0).to(tl.float32)[:, None]
    if GATED:
        if HAS_BIAS:
            up += tl.load(bias_ptr + N + features, mask=features < N, other=0.0).to(tl.float32)[:, None]
        acc = acc * tl.sigmoid(acc) * up
    mask = (features < N)[:, None] & (tokens < M)[None, :]
    cells = tokens.to(tl.int64)[None, :] * N + features[:, None]
    tl.store(out_ptr + cells, acc.to(out_ptr.dtype.element_ty), mask=mask)


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
def _bytes_tile(weight_rows, scale_rows, start, ks, in_range, EVEN_K: tl.constexpr, GROUP: tl.constexpr,
                ASM: tl.constexpr, dtype):  # fmt: skip
    """Codes [BLOCK_N, BLOCK_K] in `dtype`; times their groups' scales where those are narrower than a row."""
    if EVEN_K:
        codes = tl.load(weight_rows + start)
    else:
        codes = tl.load(weight_rows + start, mask=in_range[None, :], other=0.0)
    if GROUP > 0:
        scales = tl.load(scale_rows + ((start + ks) // GROUP)[None, :], mask=in_range[None, :], other=0.0)
        return (codes.to(tl.float32) * scales.to(tl.float32)).to(dtype)
    elif ASM:
        if codes.dtype == tl.int8:
            return _int8_to_bfloat16(codes)
        else:
            return _e4m3_to_bfloat16(codes)
    else:
        return codes.to(dtype)


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
    GROUP: tl.constexpr,  # 0: a scale for a row
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
    tile, split = tl.program_id(0), tl.program_id(1)
    tokens = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    features = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k_per_split = tl.cdiv(tl.cdiv(K, SPLIT_K), BLOCK_K) * BLOCK_K
    first_k = split * k_per_split
    release_successor(PDL)
    if PDL and PREFETCH_K > 0:
        prefetch_weights(weight_ptr, tile * BLOCK_N, N, first_k, K, BLOCK_N, PREFETCH_K)
        if GATED:
            prefetch_weights(weight_ptr, N + tile * BLOCK_N, 2 * N, first_k, K, BLOCK_N, PREFETCH_K)
    wait_for_predecessor(PDL)

    ks = tl.arange(0, BLOCK_K)
    rows = tl.minimum(features, N - 1).to(tl.int64)
    up_rows = rows + N
    groups = K // GROUP if GROUP > 0 else 1
    x_rows = x_ptr + tokens.to(tl.int64)[:, None] * x_stride + ks[None, :]
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    up = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in tl.range(first_k, tl.minimum(first_k + k_per_split, K), BLOCK_K, num_stages=NUM_STAGES):
        in_range = ks < K - start
        if EVEN_K:
            x = tl.load(x_rows + start, mask=(tokens < M)[:, None], other=0.0)
        else:
            x = tl.load(x_rows + start, mask=(tokens < M)[:, None] & in_range[None, :], other=0.0)
        weight = _bytes_tile(
            weight_ptr + rows[:, None] * K + ks[None, :], scale_ptr + rows[:, None] * groups, start, ks, in_range,
            EVEN_K, GROUP, ASM, x.dtype,
        )  # fmt: skip
        acc = tl.dot(weight, tl.trans(x), acc, input_precision="ieee")
        if GATED:
            up_weight = _bytes_tile(
                weight_ptr + up_rows[:, None] * K + ks[None, :], scale_ptr + up_rows[:, None] * groups, start, ks,
                in_range, EVEN_K, GROUP, ASM, x.dtype,
            )  # fmt: skip
            up = tl.dot(up_weight, tl.trans(x), up, input_precision="ieee")
    if GROUP == 0:
        acc *= tl.load(scale_ptr + rows).to(tl.float32)[:, None]
        if GATED:
            up *= tl.load(scale_ptr + up_rows).to(tl.float32)[:, None]
    _finish(acc, up, bias_ptr, out_ptr, partial_ptr, arrived, features, tokens, M, N, BLOCK_M, BLOCK_N, SPLIT_K, GATED,
            HAS_BIAS)  # fmt: skip


@triton.jit
def _words_tile(words, scales, offsets, SHIFT: tl.constexpr, dtype):
    """One nibble of each word, dequantized."""
    return (((words >> SHIFT) & 15).to(tl.float32) * scales + offsets).to(dtype)


@kernel(varying=["M"])
def _word_linear_kernel(
    x_ptr,  # [M, K]
    weight_ptr,  # int32 words [N, K / 8], or [2 * N, K / 8] if GATED
    scale_ptr,  # [N or 2 * N, K / GROUP]
    offset_ptr,  # the same, unused without HAS_OFFSETS
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
    BLOCK_W: tl.constexpr,  # words at a time
    GROUP: tl.constexpr,
    HAS_OFFSETS: tl.constexpr,
    SPLIT_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PREFETCH_WORDS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (cdiv(N, BLOCK_N), SPLIT_K, cdiv(M, BLOCK_M)). A nibble of BLOCK_W words is one product."""
    tile, split = tl.program_id(0), tl.program_id(1)
    tokens = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    features = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    row_words = K // 8
    words_per_split = tl.cdiv(tl.cdiv(row_words, SPLIT_K), BLOCK_W) * BLOCK_W
    first_word = split * words_per_split
    release_successor(PDL)
    if PDL and PREFETCH_WORDS > 0:
        prefetch_weights(weight_ptr, tile * BLOCK_N, N, first_word, row_words, BLOCK_N, PREFETCH_WORDS)
    wait_for_predecessor(PDL)

    rows = tl.minimum(features, N - 1).to(tl.int64)
    groups = K // GROUP
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    last_word = tl.minimum(first_word + words_per_split, row_words)
    x_rows = x_ptr + tokens.to(tl.int64)[:, None] * x_stride
    used = (tokens < M)[:, None]
    for start in tl.range(first_word, last_word, BLOCK_W, num_stages=NUM_STAGES):
        at = start + tl.arange(0, BLOCK_W)
        in_range = (at < row_words)[None, :]
        words = tl.load(weight_ptr + rows[:, None] * row_words + at[None, :], mask=in_range, other=0)
        group = rows[:, None] * groups + (at * 8 // GROUP)[None, :]
        scales = tl.load(scale_ptr + group, mask=in_range, other=0.0).to(tl.float32)
        offsets = -8.0 * scales
        if HAS_OFFSETS:
            offsets += tl.load(offset_ptr + group, mask=in_range, other=0.0).to(tl.float32)
        columns = x_rows + (at // 4 * 32 + at % 4)[None, :]
        mask = used & in_range
        for nibble in tl.static_range(8):
            x = tl.load(columns + 4 * nibble, mask=mask, other=0.0)
            acc = tl.dot(
                _words_tile(words, scales, offsets, 4 * nibble, x.dtype), tl.trans(x), acc, input_precision="ieee"
            )
    _finish(acc, acc, bias_ptr, out_ptr, partial_ptr, arrived, features, tokens, M, N, BLOCK_M, BLOCK_N, SPLIT_K, False,
            HAS_BIAS)  # fmt: skip


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

    gated, for weights of 8 bits: the weight is [2 * N, K] and the result silu_and_mul of the product. As
    triton_linear.linear otherwise; rows of x may be strided. K is a multiple of 16, for int4 of 32.
    """
    (num_tokens, k), rows = x.shape, weight.num_rows
    in_words = weight.format.name == "int4"
    n = rows // 2 if gated else rows
    config = config or choose_config(num_tokens, n, k, in_words, gated)
    out = torch.empty((num_tokens, n), dtype=out_dtype or x.dtype, device=x.device)
    tiles_n, tiles_m = div_ceil(n, config.block_n), div_ceil(num_tokens, config.block_m)
    split_k = config.split_k
    assert split_k == 1 or (not gated and tiles_n * tiles_m <= ARRIVAL_COUNTERS)
    partial_size = tiles_n * tiles_m * split_k * config.block_m * config.block_n if split_k > 1 else 0
    partial = torch.empty(partial_size, dtype=torch.float32, device=x.device)
    grid = (tiles_n, split_k, tiles_m)
    after = (
        weight.codes if bias is None else bias,
        out,
        partial,
        arrival_counters(x.device),
        num_tokens,
        n,
        k,
        x.stride(0),
    )
    prefetch = config.prefetch_bytes // (rows // n * config.block_n * weight.codes.element_size())
    common = {
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "SPLIT_K": split_k,
        "NUM_STAGES": config.num_stages,
        "HAS_BIAS": bias is not None,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "pdl": can_launch_early(x, pdl and config.pdl),
    }
    if in_words:
        assert not gated
        _word_linear_kernel(
            grid,
            x,
            weight.codes,
            weight.scales,
            weight.scales if weight.offsets is None else weight.offsets,
            *after,
            BLOCK_W=config.block_k // 8,
            GROUP=weight.group_size,
            HAS_OFFSETS=weight.offsets is not None,
            PREFETCH_WORDS=prefetch,
            **common,
        )
    else:
        _byte_linear_kernel(
            grid,
            x,
            weight.codes,
            weight.scales,
            *after,
            BLOCK_K=config.block_k,
            GROUP=weight.group_size if weight.scales.shape[1] > 1 else 0,
            EVEN_K=k % (config.block_k * split_k) == 0,
            GATED=gated,
            ASM=x.is_cuda and x.dtype == torch.bfloat16,
            PREFETCH_K=prefetch,
            **common,
        )
    return out


@functools.cache
def choose_config(num_tokens: int, n: int, k: int, in_words: bool, gated: bool) -> LinearConfig:
    """The tile for num_tokens tokens and a weight of n rows (twice that if gated) of k columns."""
    block_m = 16 if num_tokens <= 16 else 32 if num_tokens <= 32 else 64 if num_tokens <= 64 else 128
    split_k = 1 if gated or n > 8192 else 2 if n > 4096 or k <= 4096 else 4
    if in_words:
        return LinearConfig(block_m, 64, 256, split_k=split_k, num_stages=3, pdl=n * k <= 2**25)
    return LinearConfig(block_m, 64, 128, split_k=split_k, num_stages=4 if gated else 5, pdl=n * k <= 2**25)
