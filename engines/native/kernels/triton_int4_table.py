"""4-bit codes that stand for one of sixteen values (nf4, fp4), looked up without touching memory.

prmt picks any four of eight bytes by the nibbles of a word, so that one instruction looks up a byte for four codes, in
one half of a table of sixteen. A nibble's fourth bit makes it repeat the sign of the byte instead, which is 0 here: a
code of the other half gives 0, its fourth bit flipped the other way round, and both halves' results add up to what is
looked up. Two such planes of bytes make a bfloat16 for the matrix units, or an integer of 14 bits for dp4a.

Ours, because bitsandbytes' kernels were slower than no quantization at all: Qwen3-8B on one H200 took 4.5 ms a token at
one sequence, 12.1 at eight and 1883 tokens/s at 64, in bfloat16 4.37, 4.84 and 3523.

Words here hold the columns of int4's (int4.py) with those that are neighbours in nibbles that are neighbours.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from engines.native.quantization.bitsandbytes import TABLES, unpack
from engines.native.quantization.int4 import pack_words
from engines.native.quantization.weight import QuantizedWeight

UNITS = {"nf4": 1.43675, "fp4": -12.0}
"""What values are multiplied by, and scales divided: fp4's become bfloat16s exactly, nf4's to within 2^-10 in the mean
(as they are: 2^-9.5), and those of codes below 8 are not above zero."""

_INTEGERS = {"nf4": 7854, "fp4": 8064}  # steps in 1: fp4's values are whole, nf4's wrong by 2^-12 of themselves at most
_CENTER = 64 * 128  # the integer that stands for zero
_WIDEST_SLICE = 2**24  # weights that are laid out at a time

_X_LARGEST = 127 * 256  # in steps: the upper byte of x, rounded, is within a signed one


def lay_out(weight: QuantizedWeight) -> tuple[Tensor, Tensor]:
    """Words int32 [N, K / 8], and scales [N, groups, 1]: the bits of bfloat16s, which are what a weight is rounded to
    in the end anyway, in any product of several tokens; half as many bytes to read as float32, of the same range."""
    rows, columns = weight.shape
    words = torch.empty(rows, columns // 8, dtype=torch.int32, device=weight.device)
    at_once = max(_WIDEST_SLICE // columns, 1)
    for laid_out, codes in zip(words.split(at_once), weight.codes.split(at_once), strict=True):
        laid_out.copy_(pack_words(unpack(codes), side_by_side=True))
    scales = (weight.scales.float() / UNITS[weight.format.name]).bfloat16()
    return words, scales.view(torch.int16).unsqueeze(2)


def _bfloat16s(name: str) -> list[int]:
    """The bits of each value's magnitude, in units."""
    values = (torch.tensor(TABLES[name]) * UNITS[name]).abs().bfloat16()
    return values.view(torch.int16).tolist()


def _integers(name: str) -> list[int]:
    """Each value as an integer of 14 bits."""
    sign = 1 if UNITS[name] > 0 else -1
    return [_CENTER + round(value * sign * _INTEGERS[name]) for value in TABLES[name]]


def _halves(plane: Sequence[int]) -> tuple[int, int]:
    """Sixteen bytes as two integers of 64 bits."""
    packed = [sum(byte << (8 * i) for i, byte in enumerate(half)) for half in (plane[:8], plane[8:])]
    return packed[0], packed[1]


def _hidden(*planes: Sequence[int]) -> Iterator[str]:
    """PTX: the first four bytes of each plane's halves into registers.

    prmt wants one operand there, and of a constant the compiler makes a copy for each lookup, at an instruction each.
    It does not know that no lane is below lane 31's own mask.
    """
    yield ".reg .b32 zero;"
    yield "mov.u32 zero, %lanemask_lt;"
    yield "shr.u32 zero, zero, 31;"
    for i, plane in enumerate(planes):
        for j, half in enumerate(_halves(plane)):
            yield f".reg .b32 t{i}{j};"
            yield f"xor.b32 t{i}{j}, zero, {half & 0xFFFFFFFF:#x};"


def _look_up(i: int, plane: Sequence[int], results: Sequence[str]) -> Iterator[str]:
    """PTX: four bytes in each half of plane i."""
    for j, (half, result, selector) in enumerate(zip(_halves(plane), results, ("word", "other"), strict=True)):
        yield f"prmt.b32 {result}, t{i}{j}, {half >> 32:#x}, {selector};"


def _shift(half: int) -> list[str]:
    """PTX: a word's next four codes, and what selects in the upper half of a table.

    dp2a takes the upper half down here: a shift would be done where prmt is, which is what time goes into.
    """
    if half == 0:
        return ["mov.b32 word, codes;", "xor.b32 other, codes, 0x88888888;"]
    return [f"dp2a.lo.u32.u32 {each}, {each}, 0x100, 0;" for each in ("word", "other")]


def _pairs_text(name: str) -> str:
    """PTX: the eight values of a word in four pairs of bfloat16s."""
    bits = _bfloat16s(name)
    low, high = [n & 255 for n in bits], [n >> 8 for n in bits]
    lines = [".reg .b32 codes, word, other, low, high, low8, high8, a, b;", *_hidden(low, high), "mov.b32 codes, $4;"]
    for half in range(2):
        lines += [*_shift(half), *_look_up(0, low, ["low", "low8"]), *_look_up(1, high, ["high", "high8"])]
        for pair, bytes_of_two in enumerate(("0x5140", "0x7362")):
            # Where the upper byte is 0 the lower is not always: what that stands for is below 1e-37.
            lines += [
                f"prmt.b32 a, low, high, {bytes_of_two};",
                f"prmt.b32 b, low8, high8, {bytes_of_two};",
                f"sub.rn.bf16x2 ${2 * half + pair}, b, a;",
            ]
    return "{" + "\n".join(lines) + "}"


def _sums_text(name: str) -> str:
    """PTX: a chunk's sum of products with x; see table_sums."""
    integers = _integers(name)
    low, high = [n & 127 for n in integers], [n >> 7 for n in integers]
    lines = [".reg .b32 codes, word, other, a, b, large, middle, small;", *_hidden(low, high)]
    lines += ["mov.b32 large, 0;", "mov.b32 middle, $21;", "mov.b32 small, 0;"]
    for j in range(4):
        lines.append(f"mov.b32 codes, ${1 + j};")
        for half in range(2):
            lower, upper = f"${5 + 8 * half + j}", f"${9 + 8 * half + j}"
            lines += [*_shift(half), *_look_up(1, high, ["a", "b"]), "add.s32 a, a, b;"]
            lines += [f"dp4a.s32.s32 large, a, {upper}, large;", f"dp4a.s32.s32 middle, a, {lower}, middle;"]
            lines += _look_up(0, low, ["a", "b"])
            lines += [f"dp4a.s32.s32 small, {each}, {upper}, small;" for each in "ab"]
    lines += ["mad.lo.s32 middle, large, 256, middle;", "mad.lo.s32 middle, small, 2, middle;"]
    return "{" + "\n".join(lines) + "cvt.rn.f32.s32 $0, middle;}"


def _integer_halves(name: str) -> tuple[int, ...]:
    """The upper seven bits of the integers, then the lower: halves of a table each."""
    integers = _integers(name)
    return (*_halves([n >> 7 for n in integers]), *_halves([n & 127 for n in integers]))


# Triton knows a kernel compiled before by its source and such constants, not by what plain functions return.
_PAIRS_TEXT = tl.constexpr({name: _pairs_text(name) for name in TABLES})
_SUMS_TEXT = tl.constexpr({name: _sums_text(name) for name in TABLES})
_INTEGER_HALVES = tl.constexpr({name: _integer_halves(name) for name in TABLES})
_VALUES = tl.constexpr({name: tuple(value * UNITS[name] for value in TABLES[name]) for name in TABLES})
X_STEPS = tl.constexpr({name: 128 * abs(UNITS[name]) / (_INTEGERS[name] * _X_LARGEST) for name in TABLES})
"""What a sum of products is in, for x of a largest magnitude of 1, and scales in units."""
X_LARGEST = tl.constexpr(_X_LARGEST)
_ZEROS_TEXT = tl.constexpr(
    """{
    .reg .b32 lower, upper;
    dp4a.s32.s32 lower, $1, 0x01010101, 0;
    dp4a.s32.s32 lower, $2, 0x01010101, lower;
    dp4a.s32.s32 upper, $3, 0x01010101, 0;
    dp4a.s32.s32 upper, $4, 0x01010101, upper;
    mad.lo.s32 lower, upper, 256, lower;
    mul.lo.s32 $0, lower, -64;
    }"""
)


@triton.constexpr_function
def chosen(constants, table):
    """Of a dict by table."""
    return constants[table]


@triton.constexpr_function
def _entry(constants, table, i):
    return constants[table][i]


@triton.jit
def value_pairs(words, TABLE: tl.constexpr):
    """Four tensors of words: two neighbouring nibbles' values in bfloat16 each, in units."""
    text: tl.constexpr = chosen(_PAIRS_TEXT, TABLE)
    return tl.inline_asm_elementwise(
        text,
        "=&r,=&r,=&r,=&r,r",
        [words],
        dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def values_of(codes, TABLE: tl.constexpr):
    """The same of any codes, in float32."""
    found = tl.zeros_like(codes).to(tl.float32)
    for code in tl.static_range(16):
        found = tl.where(codes == code, _entry(_VALUES, TABLE, code), found)
    return found


@triton.jit
def scaled_values(pairs, scales):
    """Two bfloat16s at a time."""
    return tl.inline_asm_elementwise(
        "mul.rn.bf16x2 $0, $1, $2;", "=r,r,r", [pairs, scales], dtype=tl.bfloat16, is_pure=True, pack=2
    )


@triton.jit
def _signed(word, BYTE: tl.constexpr):
    return (word << (24 - 8 * BYTE)) >> 24


@triton.jit
def zeros_sums(lower0, lower1, upper0, upper1, ASM: tl.constexpr):
    """What values of zero make of words of x, negative."""
    if ASM:
        return tl.inline_asm_elementwise(
            _ZEROS_TEXT,
            "=r,r,r,r,r",
            [lower0, lower1, upper0, upper1],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    else:
        total = tl.zeros_like(lower0)
        for i in tl.static_range(4):
            total += _signed(lower0, i) + _signed(lower1, i) + 256 * (_signed(upper0, i) + _signed(upper1, i))
        return -64 * total


@triton.jit
def table_sums(w0, w1, w2, w3, factors, zeros, TABLE: tl.constexpr, ASM: tl.constexpr):
    """Values times x, summed over chunks [rows, CHUNKS] of four words, in steps of X_STEPS times x's largest.

    Of 128 * high + low times 256 * upper + lower the least part, low * lower, is left out: 2^-14 of the whole.
    zeros: the sums of zeros_sums, since a value of zero is the integer _CENTER.
    """
    if ASM:
        text: tl.constexpr = chosen(_SUMS_TEXT, TABLE)
        return tl.inline_asm_elementwise(
            text,
            "=f,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r",
            [w0, w1, w2, w3, factors[0], factors[1], factors[2], factors[3], factors[4], factors[5], factors[6],
             factors[7], factors[8], factors[9], factors[10], factors[11], factors[12], factors[13], factors[14],
             factors[15], zeros],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )  # fmt: skip
    else:
        words = (w0, w1, w2, w3)
        total = tl.zeros_like(w0) + zeros
        high0, high8 = _entry(_INTEGER_HALVES, TABLE, 0), _entry(_INTEGER_HALVES, TABLE, 1)
        low0, low8 = _entry(_INTEGER_HALVES, TABLE, 2), _entry(_INTEGER_HALVES, TABLE, 3)
        for i in tl.static_range(32):
            codes = (words[i // 8] >> (4 * (i % 8))) & 15
            at = ((codes & 7) * 8).to(tl.int64)
            high = (tl.where(codes < 8, high0, high8) >> at).to(tl.int32) & 127
            low = (tl.where(codes < 8, low0, low8) >> at).to(tl.int32) & 127
            lower = (factors[i // 4 % 2 * 8 + i // 8] << (24 - 8 * (i % 4))) >> 24
            upper = (factors[i // 4 % 2 * 8 + 4 + i // 8] << (24 - 8 * (i % 4))) >> 24
            total += high * (256 * upper + lower) + 2 * low * upper
        return total.to(tl.float32)
