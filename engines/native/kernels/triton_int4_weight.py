"""4-bit weights as the kernels hold them, how their words become numbers, and the whole matrix in plain numbers.

The order of codes within a chunk of words (int4.py) is that of the matrix units: a thread's words hold just the codes
that it feeds to them, so nothing moves between threads. A bfloat16 of 128 has seven bits of mantissa below it, of which
a nibble takes four: one instruction makes 128 + code out of the two codes that are 16 bits apart in a word, two more
the weights, whose scales are rounded to bfloat16 for that. Codes that are no numbers (nf4, fp4) are looked up instead,
see triton_int4_table. Knows no products.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from engines.native.kernels import triton_int4_table
from engines.native.kernels.triton_int4_table import scaled_values, value_pairs, values_of
from engines.native.kernels.triton_kernel import kernel
from engines.native.kernels.triton_launch import (
    can_launch_early,
    div_ceil,
    release_successor,
    wait_for_predecessor,
)
from engines.native.quantization.bitsandbytes import TABLES
from engines.native.quantization.weight import QuantizedWeight


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """A matrix [N, K] as the kernels here read it: a group's scale and offset come in one load."""

    codes: Tensor  # [N, K / 8] int32, see int4.py, or triton_int4_table for a table's
    affine: Tensor  # [N, groups, 2] float16: scale, offset; or [N, groups, 1] int16: scales of a table's values
    table: str = ""  # the format whose values codes index; none: int4, whose codes are numbers

    @classmethod
    def of(cls, weight: QuantizedWeight) -> Int4Weight:
        """weight is of the format int4, nf4 or fp4."""
        if weight.format.name in TABLES:
            return cls(*triton_int4_table.lay_out(weight), weight.format.name)
        offsets = torch.zeros_like(weight.scales) if weight.offsets is None else weight.offsets
        return cls(weight.codes, torch.stack([weight.scales, offsets.to(weight.scales.dtype)], dim=2))

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1] * 8

    @property
    def group_size(self) -> int:
        return self.shape[1] // self.affine.shape[1]


@triton.jit
def _code_pairs(words):
    """Four tensors of words: 128 + nibble i and 128 + nibble i + 4 in bfloat16, in the lower and the upper half."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 word;
        lop3.b32 $0, $4, 0x000f000f, 0x43004300, 0xea;
        shr.u32 word, $4, 4;
        lop3.b32 $1, word, 0x000f000f, 0x43004300, 0xea;
        shr.u32 word, $4, 8;
        lop3.b32 $2, word, 0x000f000f, 0x43004300, 0xea;
        shr.u32 word, $4, 12;
        lop3.b32 $3, word, 0x000f000f, 0x43004300, 0xea;
        }""",
        "=&r,=&r,=&r,=r,r",
        [words],
        dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def _two_codes(words, FIRST: tl.constexpr, SECOND: tl.constexpr):
    """Two nibbles of each word along a new last dimension."""
    return tl.join((words >> (4 * FIRST)) & 15, (words >> (4 * SECOND)) & 15)


@triton.jit
def _two_bfloat16s(pairs):
    """The halves of each word along a new last dimension."""
    lower, upper = pairs.to(tl.int16), (pairs >> 16).to(tl.int16)
    return tl.join(lower.to(tl.bfloat16, bitcast=True), upper.to(tl.bfloat16, bitcast=True))


@triton.jit
def _scaled(codes, scales, offsets):
    """(codes - 136) * scales + offsets, two at a time."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 code, middle;
        mov.b32 middle, 0x43084308;
        sub.rn.bf16x2 code, $1, middle;
        fma.rn.bf16x2 $0, code, $2, $3;
        }""",
        "=r,r,r,r",
        [codes, scales, offsets],
        dtype=tl.bfloat16,
        is_pure=True,
        pack=2,
    )


@triton.jit
def _in_columns(p0, p1, p2, p3, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """Four pairs of each word's neighbouring columns to [BLOCK_N, BLOCK_K]."""
    codes = tl.join(tl.join(p0, p1), tl.join(p2, p3))  # [BLOCK_N, words, i // 4, i % 2, i // 2 % 2] of int4.py
    codes = tl.reshape(codes, (BLOCK_N, BLOCK_K // 32, 4, 2, 2, 2))
    return tl.reshape(tl.permute(codes, (0, 1, 5, 4, 2, 3)), (BLOCK_N, BLOCK_K))


@triton.jit
def _of_columns(groups, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUPS: tl.constexpr):
    """What groups have, for each of their columns."""
    return tl.reshape(tl.broadcast_to(groups[:, :, None], (BLOCK_N, GROUPS, BLOCK_K // GROUPS)), (BLOCK_N, BLOCK_K))


@triton.jit
def _four_pairs(p0, p1, p2, p3, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """Bfloat16s out of words of two."""
    return _in_columns(_two_bfloat16s(p0), _two_bfloat16s(p1), _two_bfloat16s(p2), _two_bfloat16s(p3), BLOCK_N, BLOCK_K)


@triton.jit
def _numbers_tile(words, affine, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUPS: tl.constexpr, ASM: tl.constexpr,
                  dtype):  # fmt: skip
    scales, offsets = tl.split(tl.reshape(affine, (BLOCK_N, GROUPS, 2)))
    scales = _of_columns(scales, BLOCK_N, BLOCK_K, GROUPS)
    offsets = _of_columns(offsets, BLOCK_N, BLOCK_K, GROUPS)
    if ASM and dtype == tl.bfloat16:
        p0, p1, p2, p3 = _code_pairs(words)
        codes = _four_pairs(p0, p1, p2, p3, BLOCK_N, BLOCK_K)
        return _scaled(codes, scales.to(tl.bfloat16), offsets.to(tl.bfloat16))
    else:
        codes = _in_columns(_two_codes(words, 0, 4), _two_codes(words, 1, 5), _two_codes(words, 2, 6),
                            _two_codes(words, 3, 7), BLOCK_N, BLOCK_K)  # fmt: skip
        return ((codes.to(tl.float32) - 8.0) * scales.to(tl.float32) + offsets.to(tl.float32)).to(dtype)


@triton.jit
def _values_tile(words, scales, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUPS: tl.constexpr,
                 TABLE: tl.constexpr, ASM: tl.constexpr, dtype):  # fmt: skip
    scales = _of_columns(scales, BLOCK_N, BLOCK_K, GROUPS)
    if ASM:
        p0, p1, p2, p3 = value_pairs(words, TABLE)
        values = _four_pairs(p0, p1, p2, p3, BLOCK_N, BLOCK_K)
        if dtype == tl.bfloat16:
            return scaled_values(values, scales.to(tl.bfloat16, bitcast=True))
        else:
            return (values.to(tl.float32) * scales.to(tl.bfloat16, bitcast=True).to(tl.float32)).to(dtype)
    else:
        codes = _in_columns(_two_codes(words, 0, 1), _two_codes(words, 2, 3), _two_codes(words, 4, 5),
                            _two_codes(words, 6, 7), BLOCK_N, BLOCK_K)  # fmt: skip
        return (values_of(codes, TABLE) * (scales.to(tl.int32) << 16).to(tl.float32, bitcast=True)).to(dtype)


@triton.jit
def weight_tile(words, affine, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUPS: tl.constexpr,
                TABLE: tl.constexpr, ASM: tl.constexpr, dtype):  # fmt: skip
    """Weights [BLOCK_N, BLOCK_K] of words [.., BLOCK_K / 8] and their groups' affine [.., GROUPS * (1 or 2)]."""
    if TABLE != "":
        return _values_tile(words, affine, BLOCK_N, BLOCK_K, GROUPS, TABLE, ASM, dtype)
    else:
        return _numbers_tile(words, affine, BLOCK_N, BLOCK_K, GROUPS, ASM, dtype)


@kernel()
def _dequantize_kernel(
    weight_ptr,  # int32 words [N, K / 8]
    affine_ptr,  # [N, K / GROUP, AFFINE]
    out_ptr,  # [N, K]
    N,
    K,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,  # divides K
    GROUP: tl.constexpr,  # divides BLOCK_K, or the other way round
    GROUPS: tl.constexpr,  # in BLOCK_K columns, at least 1
    TABLE: tl.constexpr,
    ASM: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (cdiv(N, BLOCK_N), K / BLOCK_K)."""
    AFFINE: tl.constexpr = 1 if TABLE != "" else 2  # pyright: ignore[reportAssignmentType]
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    step = tl.program_id(1)
    release_successor(PDL)
    wait_for_predecessor(PDL)
    in_range = (rows < N)[:, None]
    rows = rows.to(tl.int64)[:, None]
    words = step * (BLOCK_K // 8) + tl.arange(0, BLOCK_K // 8)[None, :]
    affine = step * BLOCK_K // GROUP * AFFINE + tl.arange(0, GROUPS * AFFINE)[None, :]
    columns = step * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    weight = weight_tile(
        tl.load(weight_ptr + rows * (K // BLOCK_K * (BLOCK_K // 8)) + words, mask=in_range, other=0),
        tl.load(affine_ptr + rows * (K // GROUP * AFFINE) + affine, mask=in_range, other=0),
        BLOCK_N, BLOCK_K, GROUPS, TABLE, ASM, out_ptr.dtype.element_ty,
    )  # fmt: skip
    tl.store(out_ptr + rows * K + columns, weight, mask=in_range)


def dequantize(weight: Int4Weight, dtype: torch.dtype, *, pdl: bool = False) -> Tensor:
    """The matrix [N, K]; in bfloat16 with scales rounded to it, otherwise computed in float32 and rounded once."""
    rows, columns = weight.shape
    out = torch.empty((rows, columns), dtype=dtype, device=weight.codes.device)
    block_k = 256
    while columns % block_k or (block_k % weight.group_size and weight.group_size % block_k):
        block_k //= 2
    block_n = 4096 // block_k
    _dequantize_kernel(
        (div_ceil(rows, block_n), columns // block_k),
        weight.codes,
        weight.affine,
        out,
        rows,
        columns,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        GROUP=weight.group_size,
        GROUPS=max(block_k // weight.group_size, 1),
        TABLE=weight.table,
        ASM=out.is_cuda,
        num_warps=4,
        pdl=can_launch_early(out, pdl),
    )
    return out
