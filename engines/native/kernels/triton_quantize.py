"""What surrounds the libraries' products of many tokens: activations to e4m3 with a scale a token, weights to 16 bits.

torch._scaled_mm multiplies e4m3 by e4m3 with a scale for each row and each column; here are its activations, with the
norm before them in the same pass, and those in two terms of triton_terms_linear. For the formats that no library
multiplies at speed, the weight is dequantized for a product of many tokens. The plain PyTorch twins are
fp8.quantize_tokens and QuantizedWeight.dequantize.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from engines.native.kernels.triton_kernel import kernel
from engines.native.kernels.triton_launch import (
    can_launch_early,
    div_ceil,
    next_power_of_2,
    release_successor,
    wait_for_predecessor,
)
from engines.native.quantization.weight import QuantizedWeight

SECOND_TERM = {torch.float8_e4m3fn: 16.0, torch.int8: 254.0}  # what the first term errs by, at most, fills the second
_LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}


class TwoTerms(NamedTuple):
    """(codes[:, 0] + codes[:, 1] / SECOND_TERM) * scales."""

    codes: Tensor  # e4m3 or int8 [num_tokens, 2, K] contiguous
    scales: Tensor  # [num_tokens, 1] float32


@triton.jit
def _to_codes(x, dtype: tl.constexpr, NATIVE: tl.constexpr):
    """float32 within what int8 or e4m3 reach to the nearest of them. Triton's interpreter, which is not NATIVE, forgets
    to carry into e4m3's exponent: there numbers are rounded before."""
    if dtype == tl.int8:
        x = (x + 12582912.0) - 12582912.0  # 1.5 * 2^23: no place for what is behind the point
    elif not NATIVE:
        bits = x.to(tl.int32, bitcast=True)
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)
        x = tl.where(tl.abs(x) < 0.015625, (x + 24576.0) - 24576.0, normal)  # 2^-6, and 1.5 * 2^14
    return x.to(dtype)


@kernel()
def _quantize_tokens_kernel(
    x_ptr,  # [num_tokens, HIDDEN], row stride x_stride
    residual_ptr,  # [num_tokens, HIDDEN] contiguous, unused without HAS_RESIDUAL
    norm_weight_ptr,  # [HIDDEN], unused without NORM
    out_ptr,  # e4m3 or int8 [num_tokens, TERMS, HIDDEN] contiguous
    scale_ptr,  # [num_tokens] float32
    new_residual_ptr,
    x_stride,
    eps,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    NORM: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    TERMS: tl.constexpr,  # 1 or 2
    LARGEST: tl.constexpr,
    SECOND: tl.constexpr,
    NATIVE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (num_tokens,). The normed values are rounded to x's dtype first, as the norm alone would."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < HIDDEN
    release_successor(PDL)
    if NORM:
        norm_weight = tl.load(norm_weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    wait_for_predecessor(PDL)
    x = tl.load(x_ptr + row * x_stride + columns, mask=mask, other=0.0)
    dtype = x.dtype
    if HAS_RESIDUAL:
        x = x.to(tl.float32) + tl.load(residual_ptr + row * HIDDEN + columns, mask=mask, other=0.0).to(tl.float32)
        x = x.to(dtype)
        tl.store(new_residual_ptr + row * HIDDEN + columns, x, mask=mask)
    x = x.to(tl.float32)
    if NORM:
        x = x * tl.rsqrt(tl.sum(x * x, axis=0) / HIDDEN + eps) * norm_weight
        x = x.to(dtype).to(tl.float32)
    largest = tl.max(tl.abs(x), axis=0)
    scale = tl.where(largest > 0, largest / LARGEST, 1.0)
    x = tl.minimum(tl.maximum(x / scale, -LARGEST), LARGEST)
    codes = _to_codes(x, out_ptr.dtype.element_ty, NATIVE)
    out = out_ptr + row * (TERMS * HIDDEN) + columns
    tl.store(out, codes, mask=mask)
    if TERMS == 2:
        left = (x - codes.to(tl.float32)) * SECOND
        tl.store(out + HIDDEN, _to_codes(left, out_ptr.dtype.element_ty, NATIVE), mask=mask)
    tl.store(scale_ptr + row, scale)


def quantize_tokens(
    x: Tensor,
    residual: Tensor | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    *,
    pdl: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """x [num_tokens, K] to (e4m3 [num_tokens, K], scales [num_tokens, 1] float32, x + residual or x).

    norm_weight [K]: what is quantized is rms_norm(x + residual, norm_weight, eps).
    """
    terms, total = _quantize(x, residual, norm_weight, eps, torch.float8_e4m3fn, 1, pdl)
    return terms.codes.squeeze(1), terms.scales, total


def quantize_in_two_terms(
    x: Tensor,
    dtype: torch.dtype,
    residual: Tensor | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    *,
    pdl: bool = False,
) -> tuple[TwoTerms, Tensor]:
    """As quantize_tokens, to e4m3 or int8, as finely as bfloat16: what one leaves of a number is a second number."""
    return _quantize(x, residual, norm_weight, eps, dtype, 2, pdl)


def _quantize(
    x: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    num_terms: int,
    pdl: bool,
) -> tuple[TwoTerms, Tensor]:
    """codes are [num_tokens, num_terms, K]."""
    num_tokens, hidden = x.shape
    assert residual is None or norm_weight is not None
    out = torch.empty((num_tokens, num_terms, hidden), dtype=dtype, device=x.device)
    scales = torch.empty((num_tokens, 1), dtype=torch.float32, device=x.device)
    total = x if residual is None else torch.empty((num_tokens, hidden), dtype=x.dtype, device=x.device)
    block = next_power_of_2(hidden)
    if num_tokens:
        _quantize_tokens_kernel(
            (num_tokens,),
            x,
            x if residual is None else residual,
            x if norm_weight is None else norm_weight,
            out,
            scales,
            total,
            x.stride(0),
            eps,
            HIDDEN=hidden,
            BLOCK=block,
            NORM=norm_weight is not None,
            HAS_RESIDUAL=residual is not None,
            TERMS=num_terms,
            LARGEST=_LARGEST[dtype],
            SECOND=SECOND_TERM[dtype],
            NATIVE=x.is_cuda,
            num_warps=min(16, max(1, block // 512)),
            pdl=can_launch_early(x, pdl),
        )
    return TwoTerms(out, scales), total


@kernel()
def _dequantize_kernel(
    codes_ptr,  # [N, K] int8 or e4m3
    scale_ptr,  # [N, K / GROUP]
    offset_ptr,  # the same, unused without HAS_OFFSETS
    out_ptr,  # [N, K]
    K,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_OFFSETS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (N, cdiv(K, BLOCK))."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < K
    release_successor(PDL)
    wait_for_predecessor(PDL)
    values = tl.load(codes_ptr + row * K + columns, mask=mask, other=0.0).to(tl.float32)
    group = row * (K // GROUP) + columns // GROUP
    values *= tl.load(scale_ptr + group, mask=mask, other=0.0).to(tl.float32)
    if HAS_OFFSETS:
        values += tl.load(offset_ptr + group, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * K + columns, values.to(out_ptr.dtype.element_ty), mask=mask)


def dequantize(weight: QuantizedWeight, dtype: torch.dtype, *, pdl: bool = False) -> Tensor:
    """QuantizedWeight.dequantize in one pass over memory, for the formats int8 and fp8."""
    rows, columns = weight.shape
    out = torch.empty((rows, columns), dtype=dtype, device=weight.device)
    block = min(2048, next_power_of_2(columns))
    _dequantize_kernel(
        (rows, div_ceil(columns, block)),
        weight.codes,
        weight.scales,
        weight.scales if weight.offsets is None else weight.offsets,
        out,
        columns,
        GROUP=weight.group_size,
        BLOCK=block,
        HAS_OFFSETS=weight.offsets is not None,
        num_warps=4,
        pdl=can_launch_early(out, pdl),
    )
    return out
