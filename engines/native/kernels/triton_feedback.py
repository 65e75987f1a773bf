"""nf4's and fp4's codes while a model is loaded: one group of columns of all rows in one launch.

In plain PyTorch each column is a handful of launches and each scale that is tried two dozen, which makes millions for a
model of some billions of weights. A row's errors stay within the row, so a block of rows needs nothing of the others:
it fits their scales, then takes column after column, in registers. The twins are bitsandbytes._fit and
feedback.column_by_column; sums are in another order, which may decide a near tie.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from engines.native.kernels.triton_kernel import kernel
from engines.native.kernels.triton_launch import div_ceil

WIDEST_GROUP = 512  # columns: wider ones leave a block too few rows
_TILE = 2048  # weights of a block

_launching = threading.Lock()  # layers are quantized side by side, and a kernel is compiled at its first launch


@triton.jit
def _nearest(x, values_ptr, NUM_VALUES: tl.constexpr):
    """The value of the format that is nearest to each x, the smaller of two as near."""
    near = tl.zeros(x.shape, tl.float32) + tl.load(values_ptr)
    for i in tl.static_range(1, NUM_VALUES):
        below, value = tl.load(values_ptr + i - 1), tl.load(values_ptr + i)
        near = tl.where(x > (below + value) / 2, value, near)
    return near


@triton.jit
def _try(
    weight, cost, scale, least, best, values_ptr, NUM_VALUES: tl.constexpr, FITS: tl.constexpr, SMALLEST: tl.constexpr
):
    """(least error, its scale) so far, after one more start and what fits to its codes make of it."""
    for _ in tl.static_range(FITS + 1):
        scale = tl.where(tl.abs(scale) < SMALLEST, SMALLEST, scale)
        near = _nearest(weight / scale[None, :], values_ptr, NUM_VALUES)
        off = near * scale[None, :] - weight
        error = tl.sum(off * off * cost[:, None], axis=0)
        best = tl.where(error < least, scale, best)
        least = tl.minimum(error, least)
        weighted = near * cost[:, None]
        scale = tl.sum(weighted * weight, axis=0) / tl.maximum(tl.sum(weighted * near, axis=0), 1e-12)
    return least, best


@kernel(varying=["num_rows"])
def _take_group_kernel(
    group_ptr,  # [pieces, GROUP, num_rows] float32, piece_stride apart
    own_ptr,  # [pieces, GROUP, GROUP] float32: the factor's block
    cost_ptr,  # [pieces, GROUP] float32, in parts of 1
    values_ptr,  # [NUM_VALUES] float32, ascending
    starts_ptr,  # [NUM_STARTS] float32: times the largest magnitude
    met_ptr,  # [2, NUM_MET] float32: values for a costliest weight above zero, and for one below
    scale_ptr,  # [pieces, num_rows] float32
    error_ptr,  # [pieces, GROUP, num_rows] float32
    piece_stride,
    num_rows,
    NUM_VALUES: tl.constexpr,
    NUM_STARTS: tl.constexpr,
    NUM_MET: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    FITS: tl.constexpr,
    SMALLEST: tl.constexpr,
    RULES: tl.constexpr,
    NEAR: tl.constexpr,
    FAR: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (cdiv(num_rows, ROWS), pieces)."""
    tl.static_assert(not PDL, "nothing runs before that it could wait for")
    piece = tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, GROUP)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = (rows < num_rows)[None, :]
    at = columns[:, None].to(tl.int64) * num_rows + rows[None, :]
    weight = tl.load(group_ptr + piece * piece_stride + at, mask=exists, other=0.0)
    cost = tl.load(cost_ptr + piece * GROUP + columns)

    largest = tl.max(tl.abs(weight), axis=0)
    least = tl.full((ROWS,), float("inf"), tl.float32)
    best = largest
    for i in range(NUM_STARTS):
        start = largest * tl.load(starts_ptr + i)
        least, best = _try(weight, cost, start, least, best, values_ptr, NUM_VALUES, FITS, SMALLEST)
    if tl.max(cost, axis=0) > RULES:  # one column outweighs the others: its weight may be met exactly
        least, best = _try(weight, cost, best, least, best, values_ptr, NUM_VALUES, FITS, SMALLEST)
        costliest = tl.argmax(cost, axis=0)
        ruling = tl.sum(tl.where((columns == costliest)[:, None], weight, 0.0), axis=0)
        for i in range(NUM_MET):
            value = tl.where(ruling > 0, tl.load(met_ptr + i), tl.load(met_ptr + NUM_MET + i))
            start = ruling / value
            start = tl.where((start > NEAR * largest) & (start < FAR * largest), start, largest)
            least, best = _try(weight, cost, start, least, best, values_ptr, NUM_VALUES, FITS, SMALLEST)
    tl.store(scale_ptr + piece * num_rows + rows, best, mask=rows < num_rows)

    own_ptr += piece * GROUP * GROUP
    error_ptr += piece * GROUP * num_rows
    for k in range(GROUP):
        column = tl.sum(tl.where((columns == k)[:, None], weight, 0.0), axis=0)
        near = _nearest(column / best, values_ptr, NUM_VALUES) * best
        error = (column - near) / tl.load(own_ptr + k * GROUP + k)
        tl.store(error_ptr + k * num_rows + rows, error, mask=rows < num_rows)
        after = tl.load(own_ptr + k * GROUP + columns, mask=columns > k, other=0.0)
        weight -= after[:, None] * error[None, :]
    tl.store(group_ptr + piece * piece_stride + at, weight, mask=exists)


class Search(NamedTuple):
    """Which scales of a group are tried: see bitsandbytes._fit."""

    values: Tensor  # [values] float32, ascending, no value twice
    starts: Tensor  # [n] float32: times the largest magnitude
    met: Tensor  # [2, n] float32, contiguous: what a costliest weight may be met by, above zero and below
    fits: int  # from each start
    smallest: float  # magnitude of a scale
    rules: float  # part of a group's costs above which a column's weight is met
    far: tuple[float, float]  # times the largest magnitude: no scale beyond is worth a try


def take_group(group: Tensor, own: Tensor, costs: Tensor, search: Search) -> tuple[Tensor, Tensor]:
    """As feedback.TakeGroup, with the relative costs [pieces, columns]: (scales [N, pieces, 1], errors)."""
    pieces, columns, num_rows = group.shape
    assert group.stride()[1:] == (num_rows, 1), "rows lie side by side"
    scales = torch.empty((pieces, num_rows), device=group.device)
    errors = torch.empty((pieces, columns, num_rows), device=group.device)
    block = max(_TILE // columns, 4)
    with _launching, torch.cuda.device(group.device) if group.is_cuda else nullcontext():
        _take_group_kernel(
            (div_ceil(num_rows, block), pieces),
            group,
            own.contiguous(),
            costs.contiguous(),
            search.values,
            search.starts,
            search.met,
            scales,
            errors,
            group.stride(0),
            num_rows,
            NUM_VALUES=len(search.values),
            NUM_STARTS=len(search.starts),
            NUM_MET=search.met.shape[1],
            GROUP=columns,
            ROWS=block,
            FITS=search.fits,
            SMALLEST=search.smallest,
            RULES=search.rules,
            NEAR=search.far[0],
            FAR=search.far[1],
            num_warps=4,
        )
    return scales.T.unsqueeze(2), errors
