"""One-shot all-reduce over the GPUs of a host in one Triton kernel, with the residual addition and RMSNorm behind it.

Each rank writes its summand into the memory of all others, tells them, waits for theirs, and adds all of them up, in
the order of the ranks and in float32, so that every rank gets the same bits. Written rather than read, since a store
over the links is sent and forgotten, and a load waits for its way there and back.

A rank's buffer has two halves, each with a slot for every other rank, used in turn by the parity of a count of calls: a
rank that is in call k + 1 has finished reading in call k, and nobody enters call k + 2, which writes that half again,
before all are in call k + 1. So one meeting a call is enough. Block b meets the other ranks' blocks b only: it needs
what they wrote, nothing else.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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

MAX_BLOCKS = 128  # no more than run at once on any GPU that has the memory for this
_ROWS_AT_ONCE = 2  # of a block, where it has several: more bytes on the way


@triton.jit
def _slot(buffers_ptr, owner: tl.constexpr, writer: tl.constexpr, half, slot_elements, WORLD: tl.constexpr,
          dtype: tl.constexpr):  # fmt: skip
    """Where `writer`'s summand lies in the buffer of `owner`; said to be aligned, so that accesses are wide."""
    buffer = tl.multiple_of(tl.load(buffers_ptr + owner).to(tl.pointer_type(dtype)), 16)
    slot = writer if writer < owner else writer - 1
    return buffer + (half * (WORLD - 1) + slot) * slot_elements


@triton.jit
def _place(first, num_rows, HIDDEN: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """Offsets of ROWS rows of [num_rows, HIDDEN], and which of them there are."""
    rows = first + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    at = rows[:, None] * HIDDEN + columns[None, :]
    return at, (rows < num_rows)[:, None] & (columns < HIDDEN)[None, :]


@triton.jit
def _meet(flags_ptr, block, count, RANK: tl.constexpr, WORLD: tl.constexpr):
    """Tell the other ranks' blocks of this number that this one has come so far, and wait until they say the same."""
    tl.debug_barrier()  # all of the block's stores, before the one thread that tells of them
    for peer in tl.static_range(WORLD):
        if peer != RANK:
            theirs = tl.load(flags_ptr + peer).to(tl.pointer_type(tl.int64))
            tl.atomic_xchg(theirs + block * WORLD + RANK, count, sem="release", scope="sys")
    for peer in tl.static_range(WORLD):
        if peer != RANK:
            mine = tl.load(flags_ptr + RANK).to(tl.pointer_type(tl.int64))
            while tl.atomic_add(mine + block * WORLD + peer, 0, sem="acquire", scope="sys") < count:
                pass
    tl.debug_barrier()


@kernel(varying=["num_rows"])
def _all_reduce_kernel(
    x_ptr,  # [num_rows, HIDDEN] contiguous
    residual_ptr,  # [num_rows, HIDDEN] contiguous, unused without NORM
    weight_ptr,  # [HIDDEN], unused without NORM
    out_ptr,  # [num_rows, HIDDEN] contiguous: the norm, without NORM the sum
    new_residual_ptr,  # unused without NORM
    buffers_ptr,  # [WORLD] int64: addresses of the ranks' buffers, two halves of WORLD - 1 slots
    flags_ptr,  # [WORLD] int64: addresses of the ranks' [MAX_BLOCKS, WORLD] int64 flags
    state_ptr,  # [2] int64, this rank's own: calls so far; blocks of this call that are done
    num_rows,
    slot_elements,  # in x's dtype
    eps,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    WORLD: tl.constexpr,
    NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (blocks,); block b has ROWS rows from b * ROWS on, from (b + blocks) * ROWS on, and so on."""
    block, blocks = tl.program_id(0), tl.num_programs(0)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    release_successor(PDL)
    if NORM:
        columns = tl.arange(0, BLOCK)
        weight = tl.load(weight_ptr + columns, mask=columns < HIDDEN, other=0.0).to(tl.float32)
    wait_for_predecessor(PDL)
    calls = tl.load(state_ptr)
    half = calls % 2
    for first in range(block * ROWS, num_rows, blocks * ROWS):
        at, mask = _place(first, num_rows, HIDDEN, BLOCK, ROWS)
        own = tl.load(x_ptr + at, mask=mask)
        for peer in tl.static_range(WORLD):
            if peer != RANK:
                tl.store(_slot(buffers_ptr, peer, RANK, half, slot_elements, WORLD, dtype) + at, own, mask=mask)
    _meet(flags_ptr, block, calls + 1, RANK, WORLD)
    for first in range(block * ROWS, num_rows, blocks * ROWS):
        at, mask = _place(first, num_rows, HIDDEN, BLOCK, ROWS)
        total = tl.zeros((ROWS, BLOCK), tl.float32)
        for peer in tl.static_range(WORLD):
            if peer == RANK:
                total += tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
            else:  # past the first cache, which knows nothing of what others write
                theirs = _slot(buffers_ptr, RANK, peer, half, slot_elements, WORLD, dtype)
                total += tl.load(theirs + at, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
        if NORM:
            total += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
            rounded = total.to(new_residual_ptr.dtype.element_ty)
            tl.store(new_residual_ptr + at, rounded, mask=mask)
            total = rounded.to(tl.float32)
            scales = tl.rsqrt(tl.sum(total * total, axis=1) / HIDDEN + eps)
            total = total * scales[:, None] * weight[None, :]
        tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=mask)
    tl.debug_barrier()
    if tl.atomic_add(state_ptr + 1, 1, sem="acq_rel", scope="gpu") == blocks - 1:
        tl.store(state_ptr + 1, 0)
        tl.store(state_ptr, calls + 1)


@dataclass(frozen=True, slots=True)
class Peers:
    """What the kernel needs of the ranks' shared memory; tensors are on this rank's device.

    Flags and state are zero before the first call, and every rank makes the same calls in the same order.
    """

    rank: int
    buffers: Tensor  # [world size] int64
    flags: Tensor  # [world size] int64
    state: Tensor  # [2] int64
    slot_bytes: int  # the largest summand

    @property
    def world_size(self) -> int:
        return self.buffers.shape[0]


def shared_bytes(world_size: int, summand_bytes: int) -> int:
    """What each rank shares, for summands of up to so many bytes."""
    return _flag_bytes(world_size) + 2 * (world_size - 1) * summand_bytes


def _flag_bytes(world_size: int) -> int:
    return MAX_BLOCKS * world_size * 8


def peers_at(rank: int, addresses: Sequence[int], num_bytes: int, device: torch.device) -> Peers:
    """For zeroed shared memory of `num_bytes` a rank: flags in front, the two halves of the buffer behind them."""
    world_size, first = len(addresses), _flag_bytes(len(addresses))
    flags = torch.tensor(addresses, dtype=torch.int64, device=device)
    state = torch.zeros(2, dtype=torch.int64, device=device)
    return Peers(rank, flags + first, flags, state, (num_bytes - first) // (2 * (world_size - 1)) // 16 * 16)


def all_reduce(x: Tensor, peers: Peers, *, pdl: bool = False) -> Tensor:
    """The sum of the ranks' x [num_rows, hidden], which fits a slot of the buffer."""
    out = torch.empty_like(x)
    _launch(x, x, x, out, out, peers, 0.0, norm=False, pdl=pdl)
    return out


def all_reduce_add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, peers: Peers, *, pdl: bool = False
) -> tuple[Tensor, Tensor]:
    """(rms_norm(sum of the ranks' x + residual), sum + residual); x and residual [num_rows, hidden]."""
    out, new_residual = torch.empty_like(x), torch.empty_like(residual)
    _launch(x, residual, weight, out, new_residual, peers, eps, norm=True, pdl=pdl)
    return out, new_residual


def _launch(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    out: Tensor,
    new_residual: Tensor,
    peers: Peers,
    eps: float,
    *,
    norm: bool,
    pdl: bool,
) -> None:
    num_rows, hidden = x.shape
    assert x.nbytes <= peers.slot_bytes, "the sum does not fit the shared buffer"
    assert x.is_contiguous(), "the kernel takes contiguous rows"
    assert residual.is_contiguous(), "the kernel takes contiguous rows"
    block = next_power_of_2(hidden)
    rows_at_once = _ROWS_AT_ONCE if num_rows > MAX_BLOCKS else 1
    _all_reduce_kernel(
        (min(div_ceil(num_rows, rows_at_once), MAX_BLOCKS),),
        x,
        residual,
        weight,
        out,
        new_residual,
        peers.buffers,
        peers.flags,
        peers.state,
        num_rows,
        peers.slot_bytes // x.element_size(),
        eps,
        HIDDEN=hidden,
        BLOCK=block,
        ROWS=rows_at_once,
        RANK=peers.rank,
        WORLD=peers.world_size,
        NORM=norm,
        num_warps=min(16, max(4, block // 512)),
        pdl=can_launch_early(x, pdl),
    )
