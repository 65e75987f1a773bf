"""Chunks of 32 columns of 4-bit weights and of a vector, and their products on ordinary cores.

The weight is read as the tiles for more tokens store it (int4.py): four words hold 32 columns of a row. A thread has
those 16 bytes of each of its rows and the same columns of x, so a chunk's sum is its own and nothing moves between
threads (dimensions of size 2, 4 and 8 lie within one; it takes as many chunks as threads, or more).

What a weight costs decides, since memory brings one in the time of a few instructions; turning codes into floating
numbers alone takes two and a half a weight. Here x becomes integers of 16 bits instead, once for all rows, in steps of
1/30840 of the largest in its chunk, which rounds a hundred times finer than bfloat16 did that one. One instruction then
multiplies four bytes of codes by four bytes of x and adds all up, exactly. A byte holds two codes, 16 * odd + even;
even ones are masked, odd ones are not: what is too much is taken from the even codes' x beforehand.

The values that a table has for codes (triton_int4_table) are integers of 14 bits, in two bytes: three products of bytes
instead of two, of which one for each half of the table, and x in steps of 1/32512 of the largest.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from engines.native.kernels.triton_int4_table import X_LARGEST, X_STEPS, chosen, table_sums, zeros_sums


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
def load_affine(groups_ptr, rows, step, num_chunks, GROUP: tl.constexpr, EVEN: tl.constexpr, AHEAD: tl.constexpr,
                 CHUNKS: tl.constexpr):  # fmt: skip
    """What groups_ptr has of each chunk's group, [rows, CHUNKS]."""
    chunks = step * CHUNKS + tl.arange(0, CHUNKS)
    num_groups = num_chunks // (GROUP // 32)
    # A thread takes the groups of its own words, not as many as would make a wide load.
    at = tl.max_contiguous(rows[:, None] * num_groups + (chunks // (GROUP // 32))[None, :], [1, 1])
    if not EVEN:
        return tl.load(groups_ptr + at, mask=(chunks < num_chunks)[None, :], other=0)
    elif AHEAD:
        return tl.load(groups_ptr + at, mask=step * CHUNKS < num_chunks)
    else:
        return tl.load(groups_ptr + at)


@triton.jit
def _load_pairs(x_ptr, columns, K, EVEN: tl.constexpr, CHUNKS: tl.constexpr):
    """The numbers at columns [CHUNKS, 8], as lower and upper ones of pairs [CHUNKS, 4], in float32."""
    if EVEN:  # a mask that is always true would hide that columns lie together
        x = tl.load(x_ptr + columns)
    else:
        x = tl.load(x_ptr + columns, mask=columns < K, other=0.0)
    return tl.split(tl.reshape(x.to(tl.float32), (CHUNKS, 4, 2)))


@triton.jit
def _to_bytes(x0, x1, x2, x3, ASM: tl.constexpr):
    """Four numbers within 2^15 (elementwise), rounded to integers: their lower bytes in a word, and their upper."""
    # 1.5 * 2^23 leaves integers in the lower bits.
    x0 = (x0 + 12582912.0).to(tl.int32, bitcast=True)
    x1 = (x1 + 12582912.0).to(tl.int32, bitcast=True)
    x2 = (x2 + 12582912.0).to(tl.int32, bitcast=True)
    x3 = (x3 + 12582912.0).to(tl.int32, bitcast=True)
    if ASM:
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 first, second;
            prmt.b32 first, $2, $3, 0x5140;
            prmt.b32 second, $4, $5, 0x5140;
            prmt.b32 $0, first, second, 0x5410;
            prmt.b32 $1, first, second, 0x7632;
            }""",
            "=&r,=r,r,r,r,r",
            [x0, x1, x2, x3],
            dtype=(tl.int32, tl.int32),
            is_pure=True,
            pack=1,
        )
    else:
        lower = (x0 & 255) | ((x1 & 255) << 8) | ((x2 & 255) << 16) | (x3 << 24)
        upper = ((x0 >> 8) & 255) | (x1 & 0xFF00) | ((x2 & 0xFF00) << 8) | ((x3 & 0xFF00) << 16)
        return lower, upper


@triton.jit
def _four(words, CHUNKS: tl.constexpr):
    """The four columns of [CHUNKS, 4]."""
    even, odd = tl.split(tl.reshape(words, (CHUNKS, 2, 2)))
    w0, w2 = tl.split(even)
    w1, w3 = tl.split(odd)
    return w0, w1, w2, w3


@triton.jit
def _sixteen(a, b, c, d, CHUNKS: tl.constexpr):
    a0, a1, a2, a3 = _four(a, CHUNKS)
    b0, b1, b2, b3 = _four(b, CHUNKS)
    c0, c1, c2, c3 = _four(c, CHUNKS)
    d0, d1, d2, d3 = _four(d, CHUNKS)
    return a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3


@triton.jit
def _numbers_factors(l0, l1, l2, l3, u0, u1, u2, u3, largest, CHUNKS: tl.constexpr, ASM: tl.constexpr):
    """Bytes for the even codes, the lower and the upper, and the same for the odd; a sixteenth of their step; the sum
    of x."""
    total = tl.sum(((l0 + u0) + (l1 + u1)) + ((l2 + u2) + (l3 + u3)), axis=1)
    steps = (30840.0 / largest)[:, None]  # an even code's x may be larger by a sixteenth, and then within 2^15
    sixteenth = 0.0625 * steps
    even_lower, even_upper = _to_bytes(
        l0 * steps - l1 * sixteenth,
        l2 * steps - l3 * sixteenth,
        u0 * steps - u1 * sixteenth,
        u2 * steps - u3 * sixteenth,
        ASM,
    )
    odd_lower, odd_upper = _to_bytes(l1 * steps, l3 * steps, u1 * steps, u3 * steps, ASM)
    return _sixteen(even_lower, even_upper, odd_lower, odd_upper, CHUNKS), largest * (0.0625 / 30840.0), total


@triton.jit
def _values_factors(l0, l1, l2, l3, u0, u1, u2, u3, largest, CHUNKS: tl.constexpr, TABLE: tl.constexpr,
                    ASM: tl.constexpr):  # fmt: skip
    """Signed bytes for the lower half of a word, the lower and the upper, and the same for the upper half; the step of
    table_sums; what these start from."""
    steps = (1.0 / largest * X_LARGEST)[:, None]
    a_lower, a_upper = _to_bytes(l0 * steps + 128.0, u0 * steps + 128.0, l1 * steps + 128.0, u1 * steps + 128.0, ASM)
    b_lower, b_upper = _to_bytes(l2 * steps + 128.0, u2 * steps + 128.0, l3 * steps + 128.0, u3 * steps + 128.0, ASM)
    a_lower ^= -2139062144  # 0x80808080: the 128s, of which upper bytes keep what makes up for lower ones below zero
    b_lower ^= -2139062144
    zeros = tl.sum(zeros_sums(a_lower, b_lower, a_upper, b_upper, ASM), axis=1)
    return _sixteen(a_lower, a_upper, b_lower, b_upper, CHUNKS), largest * chosen(X_STEPS, TABLE), zeros


@triton.jit
def load_factors(x_ptr, step, K, EVEN: tl.constexpr, CHUNKS: tl.constexpr, TABLE: tl.constexpr, ASM: tl.constexpr):
    """What a row's products need of a step's columns, all [CHUNKS]: sixteen words of bytes of x as they meet those of a
    chunk's words, the step of sums of these products, and what numbers and values each add of their own."""
    at = (step * CHUNKS + tl.arange(0, CHUNKS))[:, None] * 32 + tl.arange(0, 8)[None, :]
    l0, u0 = _load_pairs(x_ptr, at, K, EVEN, CHUNKS)
    l1, u1 = _load_pairs(x_ptr, at + 8, K, EVEN, CHUNKS)
    l2, u2 = _load_pairs(x_ptr, at + 16, K, EVEN, CHUNKS)
    l3, u3 = _load_pairs(x_ptr, at + 24, K, EVEN, CHUNKS)
    lower = tl.maximum(tl.maximum(tl.abs(l0), tl.abs(l1)), tl.maximum(tl.abs(l2), tl.abs(l3)))
    upper = tl.maximum(tl.maximum(tl.abs(u0), tl.abs(u1)), tl.maximum(tl.abs(u2), tl.abs(u3)))
    largest = tl.maximum(tl.max(tl.maximum(lower, upper), axis=1), 1e-30)
    if TABLE != "":
        return _values_factors(l0, l1, l2, l3, u0, u1, u2, u3, largest, CHUNKS, TABLE, ASM)
    else:
        return _numbers_factors(l0, l1, l2, l3, u0, u1, u2, u3, largest, CHUNKS, ASM)


@triton.jit
def _dot_bytes(codes, lower, upper):
    """What two dp4a do: the sum of products of four bytes of codes and four numbers of x."""
    total = (codes & 255) * ((lower & 255) + ((upper << 24) >> 24) * 256)
    for i in tl.static_range(1, 4):
        total += ((codes >> (8 * i)) & 255) * (((lower >> (8 * i)) & 255) + ((upper << (24 - 8 * i)) >> 24) * 256)
    return total


@triton.jit
def _sums(w0, w1, w2, w3, factors, ASM: tl.constexpr):
    """Sixteen times codes of 0 to 15 times x, in its steps, summed over chunks [rows, CHUNKS] of four words."""
    if ASM:
        # In one piece: apart, each instruction is done for all rows before the next, which takes too many registers.
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 even, lower, upper;
            and.b32 even, $1, 0x0f0f0f0f;
            dp4a.u32.u32 lower, even, $5, 0;
            dp4a.u32.s32 upper, even, $9, 0;
            and.b32 even, $2, 0x0f0f0f0f;
            dp4a.u32.u32 lower, even, $6, lower;
            dp4a.u32.s32 upper, even, $10, upper;
            and.b32 even, $3, 0x0f0f0f0f;
            dp4a.u32.u32 lower, even, $7, lower;
            dp4a.u32.s32 upper, even, $11, upper;
            and.b32 even, $4, 0x0f0f0f0f;
            dp4a.u32.u32 lower, even, $8, lower;
            dp4a.u32.s32 upper, even, $12, upper;
            shl.b32 lower, lower, 4;
            shl.b32 upper, upper, 4;
            dp4a.u32.u32 lower, $1, $13, lower;
            dp4a.u32.s32 upper, $1, $17, upper;
            dp4a.u32.u32 lower, $2, $14, lower;
            dp4a.u32.s32 upper, $2, $18, upper;
            dp4a.u32.u32 lower, $3, $15, lower;
            dp4a.u32.s32 upper, $3, $19, upper;
            dp4a.u32.u32 lower, $4, $16, lower;
            dp4a.u32.s32 upper, $4, $20, upper;
            shl.b32 upper, upper, 8;
            add.s32 lower, lower, upper;
            cvt.rn.f32.s32 $0, lower;
            }""",
            "=f,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r",
            [w0, w1, w2, w3, factors[0], factors[1], factors[2], factors[3], factors[4], factors[5], factors[6],
             factors[7], factors[8], factors[9], factors[10], factors[11], factors[12], factors[13], factors[14],
             factors[15]],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )  # fmt: skip
    else:
        words = (w0, w1, w2, w3)
        total = tl.zeros_like(w0)
        for j in tl.static_range(4):
            even = words[j] & 0x0F0F0F0F
            total += 16 * _dot_bytes(even, factors[j], factors[4 + j])
            total += _dot_bytes(words[j], factors[8 + j], factors[12 + j])
        return total.to(tl.float32)


@triton.jit
def chunk_products(words, affine, affine_dtype, factors, step, total, BLOCK_N: tl.constexpr, CHUNKS: tl.constexpr,
                   TABLE: tl.constexpr, ASM: tl.constexpr):  # fmt: skip
    """Each chunk's product with x, [BLOCK_N, CHUNKS]."""
    even, odd = tl.split(tl.reshape(words, (BLOCK_N, CHUNKS, 2, 2)))
    w0, w2 = tl.split(even)
    w1, w3 = tl.split(odd)
    if TABLE != "":
        scales = (affine.to(tl.int32) << 16).to(tl.float32, bitcast=True)
        return table_sums(w0, w1, w2, w3, factors, total[None, :], TABLE, ASM) * step[None, :] * scales
    else:
        scales = affine.to(tl.int16).to(affine_dtype, bitcast=True).to(tl.float32)
        offsets = (affine >> 16).to(tl.int16).to(affine_dtype, bitcast=True).to(tl.float32)
        products = _sums(w0, w1, w2, w3, factors, ASM) * step[None, :] - (8.0 * total)[None, :]
        return products * scales + total[None, :] * offsets
