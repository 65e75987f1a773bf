"""Chunks of 32 columns of 4-bit weights and of a vector, and their products on ordinary cores.

The weight is read as the tiles for more tokens store it (int4.py): four words hold 32 columns of a row. A thread has
those 16 bytes of each of its rows and the same columns of x, so a chunk's sum is its own and nothing moves between
threads (dimensions of size 4 and 8 lie within one; it takes as many chunks as threads, or more).

What a weight costs decides, since memory brings one in the time of a few instructions. One instruction turns two codes,
16 bits apart, into two bfloat16 numbers 128 + code. Read as one float32, that is C + upper + lower / 2^16, which needs
no masking: what is too much is taken from the lower code's factor beforehand.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_words(weight_ptr, rows, step, row_words, EVEN: tl.constexpr, AHEAD: tl.constexpr, WORDS: tl.constexpr):
    """[rows, WORDS] of a step, which AHEAD may be beyond the last."""
    words = step * WORDS + tl.arange(0, WORDS)
    pointers = weight_ptr + (rows[:, None] * row_words + words[None, :])
    if not EVEN:
        return tl.load(pointers, mask=(words < row_words)[None, :], other=0)
    elif AHEAD:
        return tl.load(pointers, mask=step * WORDS < row_words)
    else:
        return tl.load(pointers)


@triton.jit
def load_affine(affine_ptr, rows, step, num_chunks, GROUP: tl.constexpr, EVEN: tl.constexpr, AHEAD: tl.constexpr,
                 CHUNKS: tl.constexpr):  # fmt: skip
    """Scale and offset of the group of each chunk, a word or two of [rows, CHUNKS]."""
    chunks = step * CHUNKS + tl.arange(0, CHUNKS)
    num_groups = num_chunks // (GROUP // 32)
    # A thread takes the groups of its own words, not as many as would make a wide load.
    at = tl.max_contiguous(rows[:, None] * num_groups + (chunks // (GROUP // 32))[None, :], [1, 1])
    pairs = affine_ptr.to(tl.pointer_type(tl.int32))
    if not EVEN:
        return tl.load(pairs + at, mask=(chunks < num_chunks)[None, :], other=0)
    elif AHEAD:
        return tl.load(pairs + at, mask=step * CHUNKS < num_chunks)
    else:
        return tl.load(pairs + at)


@triton.jit
def _load_columns(x_ptr, columns, K, EVEN: tl.constexpr):
    if EVEN:  # a mask that is always true would hide that columns lie together
        return tl.load(x_ptr + columns)
    else:
        return tl.load(x_ptr + columns, mask=columns < K, other=0.0)


@triton.jit
def _load_pairs(x_ptr, residual_ptr, norm_weight_ptr, sum_ptr, columns, K, EVEN: tl.constexpr, NORM: tl.constexpr,
                HAS_RESIDUAL: tl.constexpr, CHUNKS: tl.constexpr):  # fmt: skip
    """The numbers at columns [CHUNKS, 8], as lower and upper ones of pairs [CHUNKS, 4], and their squares, in float32.

    (x + residual) times the norm's weight, whose scale is not known yet; the first block stores the sum.
    """
    x = _load_columns(x_ptr, columns, K, EVEN)
    if HAS_RESIDUAL:
        residual = _load_columns(residual_ptr, columns, K, EVEN)
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)
        tl.store(sum_ptr + columns, x, mask=(columns < K) & (tl.program_id(0) == 0))
    x = x.to(tl.float32)
    squares = x * x
    if NORM:
        x *= _load_columns(norm_weight_ptr, columns, K, EVEN).to(tl.float32)
    lower, upper = tl.split(tl.reshape(x, (CHUNKS, 4, 2)))
    return lower, upper, squares


@triton.jit
def load_factors(x_ptr, residual_ptr, norm_weight_ptr, sum_ptr, step, K, EVEN: tl.constexpr, NORM: tl.constexpr,
                 HAS_RESIDUAL: tl.constexpr, CHUNKS: tl.constexpr):  # fmt: skip
    """What a row's products need of CHUNKS chunks, and their squares [CHUNKS, 8].

    The factors of the lower and the upper codes of the four pairs in each word [CHUNKS, 4], what 136 and more in each
    code adds to a chunk's sum [CHUNKS], and the chunk's sum of x [CHUNKS].
    """
    at = (step * CHUNKS + tl.arange(0, CHUNKS))[:, None] * 32 + tl.arange(0, 8)[None, :]
    l0, u0, s0 = _load_pairs(x_ptr, residual_ptr, norm_weight_ptr, sum_ptr, at, K, EVEN, NORM, HAS_RESIDUAL, CHUNKS)
    l1, u1, s1 = _load_pairs(x_ptr, residual_ptr, norm_weight_ptr, sum_ptr, at + 8, K, EVEN, NORM, HAS_RESIDUAL, CHUNKS)
    l2, u2, s2 = _load_pairs(
        x_ptr, residual_ptr, norm_weight_ptr, sum_ptr, at + 16, K, EVEN, NORM, HAS_RESIDUAL, CHUNKS
    )
    l3, u3, s3 = _load_pairs(
        x_ptr, residual_ptr, norm_weight_ptr, sum_ptr, at + 24, K, EVEN, NORM, HAS_RESIDUAL, CHUNKS
    )
    upper = tl.sum((u0 + u1) + (u2 + u3), axis=1)
    total = tl.sum((l0 + l1) + (l2 + l3), axis=1) + upper
    # 17024 / 2^16: the exponent 0x4300 below an upper code, less 128 of what is taken from a lower factor.
    excess = 136.0 * total + 0.259765625 * upper
    BELOW: tl.constexpr = 0.0000152587890625  # 2^-16
    factors = (l0 - u0 * BELOW, l1 - u1 * BELOW, l2 - u2 * BELOW, l3 - u3 * BELOW, u0, u1, u2, u3)
    return factors, excess, total, (s0 + s1) + (s2 + s3)


@triton.jit
def _word_sums(words, factors):
    """Numbers 128 + code, and more in the upper ones, of words [rows, CHUNKS, 4] times factors [1, CHUNKS, 4].

    In one piece: apart, the numbers of all rows are made before any is multiplied, which takes too many registers.
    """
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 word, pair, lower;
        .reg .f32 sum;
        lop3.b32 pair, $1, 0x000f000f, 0x43004300, 0xea;
        shl.b32 lower, pair, 16;
        mul.rn.f32 sum, lower, $2;
        fma.rn.f32 sum, pair, $6, sum;
        shr.u32 word, $1, 4;
        lop3.b32 pair, word, 0x000f000f, 0x43004300, 0xea;
        shl.b32 lower, pair, 16;
        fma.rn.f32 sum, lower, $3, sum;
        fma.rn.f32 sum, pair, $7, sum;
        shr.u32 word, $1, 8;
        lop3.b32 pair, word, 0x000f000f, 0x43004300, 0xea;
        shl.b32 lower, pair, 16;
        fma.rn.f32 sum, lower, $4, sum;
        fma.rn.f32 sum, pair, $8, sum;
        shr.u32 word, $1, 12;
        lop3.b32 pair, word, 0x000f000f, 0x43004300, 0xea;
        shl.b32 lower, pair, 16;
        fma.rn.f32 sum, lower, $5, sum;
        fma.rn.f32 $0, pair, $9, sum;
        }""",
        "=f,r,f,f,f,f,f,f,f,f",
        [words, factors[0], factors[1], factors[2], factors[3], factors[4], factors[5], factors[6], factors[7]],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def _pair_sums(words, lower, upper, SHIFT: tl.constexpr):
    """The part of _word_sums of one pair in each word."""
    pairs = ((words >> SHIFT) & 0x000F000F) | 0x43004300
    return (pairs << 16).to(tl.float32, bitcast=True) * lower + pairs.to(tl.float32, bitcast=True) * upper


@triton.jit
def chunk_products(words, affine, affine_dtype, factors, excess, total, BLOCK_N: tl.constexpr, CHUNKS: tl.constexpr,
              ASM: tl.constexpr):  # fmt: skip
    """Each chunk's product with x, [BLOCK_N, CHUNKS]."""
    words = tl.reshape(words, (BLOCK_N, CHUNKS, 4))
    if ASM:
        sums = _word_sums(words, factors)
    else:
        sums = _pair_sums(words, factors[0], factors[4], 0) + _pair_sums(words, factors[1], factors[5], 4)
        sums += _pair_sums(words, factors[2], factors[6], 8) + _pair_sums(words, factors[3], factors[7], 12)
    scales = affine.to(tl.int16).to(affine_dtype, bitcast=True).to(tl.float32)
    offsets = (affine >> 16).to(tl.int16).to(affine_dtype, bitcast=True).to(tl.float32)
    return (tl.sum(sums, axis=2) - excess[None, :]) * scales + total[None, :] * offsets
