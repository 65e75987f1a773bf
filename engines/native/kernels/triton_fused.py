"""Fused element-wise kernels in Triton: norms with the residual add, the gated activation, QK-norm + RoPE + KV write.

Each reads its inputs once and writes its outputs once; all are bound by memory bandwidth. Statistics and rotations
are computed in float32 and rounded to the tensors' dtype where the plain PyTorch twins in reference.py round. A slot
of -1 (padding) writes nothing to the cache. All can be captured in a CUDA graph.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

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


@kernel()
def _rms_norm_kernel(
    x_ptr,  # [num_tokens, HIDDEN], row stride x_stride
    residual_ptr,  # [num_tokens, HIDDEN] contiguous, unused without HAS_RESIDUAL
    weight_ptr,  # [HIDDEN]
    out_ptr,  # [num_tokens, HIDDEN] contiguous
    new_residual_ptr,
    x_stride,
    eps,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (num_tokens,)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < HIDDEN
    release_successor(PDL)
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    wait_for_predecessor(PDL)
    x = tl.load(x_ptr + row * x_stride + columns, mask=mask, other=0.0)
    if HAS_RESIDUAL:
        x = x.to(tl.float32) + tl.load(residual_ptr + row * HIDDEN + columns, mask=mask, other=0.0).to(tl.float32)
        x = x.to(new_residual_ptr.dtype.element_ty)
        tl.store(new_residual_ptr + row * HIDDEN + columns, x, mask=mask)
    x = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / HIDDEN + eps)
    tl.store(out_ptr + row * HIDDEN + columns, (x * scale * weight).to(out_ptr.dtype.element_ty), mask=mask)


@kernel()
def _silu_and_mul_kernel(
    gate_up_ptr,  # [num_tokens, 2 * INTERMEDIATE], row stride gate_up_stride
    out_ptr,  # [num_tokens, INTERMEDIATE] contiguous
    gate_up_stride,
    INTERMEDIATE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (num_tokens, blocks of columns)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < INTERMEDIATE
    release_successor(PDL)
    wait_for_predecessor(PDL)
    gate = tl.load(gate_up_ptr + row * gate_up_stride + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * gate_up_stride + INTERMEDIATE + columns, mask=mask, other=0.0).to(tl.float32)
    out = gate * tl.sigmoid(gate) * up
    tl.store(out_ptr + row * INTERMEDIATE + columns, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _head_norm(part, columns, in_part, weight_ptr, scale, is_normed):
    weight = tl.load(weight_ptr + columns, mask=in_part, other=0.0).to(tl.float32)
    return tl.where(is_normed[:, None], part * scale[:, None] * weight[None, :], part)


@triton.jit
def _store_heads(part, columns, mask, row, heads, q_out_ptr, key_slot, value_slot, is_query, is_key, is_value,
                 NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr):  # fmt: skip
    """Send each head's row to its place: queries to the output, keys and values to the token's cache slot."""
    part = part.to(q_out_ptr.dtype.element_ty)
    q_offsets = row * NUM_HEADS * HEAD_DIM + heads[:, None] * HEAD_DIM + columns[None, :]
    tl.store(q_out_ptr + q_offsets, part, mask=mask & is_query[:, None])
    if key_slot.dtype.element_ty == tl.float8e4nv:
        part = tl.minimum(tl.maximum(part.to(tl.float32), -448.0), 448.0).to(tl.float8e4nv)
    k_offsets = (heads[:, None] - NUM_HEADS) * HEAD_DIM + columns[None, :]
    tl.store(key_slot + k_offsets, part, mask=mask & is_key[:, None])
    v_offsets = (heads[:, None] - NUM_HEADS - NUM_KV_HEADS) * HEAD_DIM + columns[None, :]
    tl.store(value_slot + v_offsets, part, mask=mask & is_value[:, None])


@kernel(varying=["positions_ptr", "slot_mapping"])
def _rope_and_cache_kernel(
    qkv_ptr,  # [num_tokens, (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM], row stride qkv_stride
    positions_ptr,  # [num_tokens] int64
    cos_sin_ptr,  # [max_positions, 2 * HALF] float32
    q_norm_ptr,  # [HEAD_DIM], unused without QK_NORM
    k_norm_ptr,
    q_out_ptr,  # [num_tokens, NUM_HEADS, HEAD_DIM] contiguous
    key_cache,
    value_cache,
    slot_mapping,  # [num_tokens] int64, -1 = padding
    qkv_stride,
    slot_stride,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    HEADS: tl.constexpr,
    QK_NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (num_tokens, blocks of HEADS heads; heads count queries, then keys, then values).

    A head is three runs of columns: the two halves that rotate with each other, and the rest that passes unrotated.
    """
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    exists = heads < NUM_HEADS + 2 * NUM_KV_HEADS
    release_successor(PDL)
    wait_for_predecessor(PDL)
    position = tl.load(positions_ptr + row)
    slot = tl.load(slot_mapping + row)
    is_query = heads < NUM_HEADS
    is_rotated = heads < NUM_HEADS + NUM_KV_HEADS
    has_slot = (slot + tl.zeros_like(heads)) >= 0
    is_key = is_rotated & (heads >= NUM_HEADS) & has_slot
    is_value = exists & (heads >= NUM_HEADS + NUM_KV_HEADS) & has_slot

    half = tl.arange(0, BLOCK_HALF)
    rest = 2 * HALF + tl.arange(0, BLOCK_REST)
    half_mask = exists[:, None] & (half < HALF)[None, :]
    rest_mask = exists[:, None] & (rest < HEAD_DIM)[None, :]
    source = qkv_ptr + row * qkv_stride + heads[:, None] * HEAD_DIM
    first = tl.load(source + half[None, :], mask=half_mask, other=0.0).to(tl.float32)
    second = tl.load(source + HALF + half[None, :], mask=half_mask, other=0.0).to(tl.float32)
    if REST > 0:
        third = tl.load(source + rest[None, :], mask=rest_mask, other=0.0).to(tl.float32)
    if QK_NORM:
        squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
        if REST > 0:
            squares += tl.sum(third * third, axis=1)
        scale = tl.rsqrt(squares / HEAD_DIM + eps)
        in_half = half < HALF
        dtype = q_out_ptr.dtype.element_ty
        is_key_head = is_rotated & (heads >= NUM_HEADS)
        first = _head_norm(first, half, in_half, q_norm_ptr, scale, is_query)
        first = _head_norm(first, half, in_half, k_norm_ptr, scale, is_key_head).to(dtype).to(tl.float32)
        second = _head_norm(second, HALF + half, in_half, q_norm_ptr, scale, is_query)
        second = _head_norm(second, HALF + half, in_half, k_norm_ptr, scale, is_key_head).to(dtype).to(tl.float32)
        if REST > 0:
            third = _head_norm(third, rest, rest < HEAD_DIM, q_norm_ptr, scale, is_query)
            third = _head_norm(third, rest, rest < HEAD_DIM, k_norm_ptr, scale, is_key_head)
    table = cos_sin_ptr + position * (2 * HALF) + half
    cos = tl.where(is_rotated[:, None], tl.load(table, mask=half < HALF, other=0.0)[None, :], 1.0)
    sin = tl.where(is_rotated[:, None], tl.load(table + HALF, mask=half < HALF, other=0.0)[None, :], 0.0)

    key_slot = key_cache + slot * slot_stride
    value_slot = value_cache + slot * slot_stride
    _store_heads(first * cos - second * sin, half, half_mask, row, heads, q_out_ptr, key_slot, value_slot,
                 is_query, is_key, is_value, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM)  # fmt: skip
    _store_heads(second * cos + first * sin, HALF + half, half_mask, row, heads, q_out_ptr, key_slot, value_slot,
                 is_query, is_key, is_value, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM)  # fmt: skip
    if REST > 0:
        _store_heads(third, rest, rest_mask, row, heads, q_out_ptr, key_slot, value_slot,
                     is_query, is_key, is_value, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM)  # fmt: skip


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, pdl: bool = False) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis of x [num_tokens, hidden]."""
    return _norm(x, None, weight, eps, pdl)[0]


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, pdl: bool = False
) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual), the sum rounded to the tensors' dtype first; all [num_tokens, hidden]."""
    return _norm(x, residual, weight, eps, pdl)


def _norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, pdl: bool) -> tuple[Tensor, Tensor]:
    num_tokens, hidden = x.shape
    out = torch.empty((num_tokens, hidden), dtype=x.dtype, device=x.device)
    new_residual = out if residual is None else torch.empty_like(out)
    block = next_power_of_2(hidden)
    pdl = can_launch_early(x, pdl)
    if num_tokens:
        _rms_norm_kernel(
            (num_tokens,),
            x,
            x if residual is None else residual,
            weight,
            out,
            new_residual,
            x.stride(0),
            eps,
            HIDDEN=hidden,
            BLOCK=block,
            HAS_RESIDUAL=residual is not None,
            num_warps=min(16, max(1, block // 512)),
            pdl=pdl,
        )
    return out, new_residual


def silu_and_mul(gate_up: Tensor, *, pdl: bool = False) -> Tensor:
    """silu(first half) * second half of the columns: gate_up [num_tokens, 2 * intermediate] -> [.., intermediate]."""
    num_tokens, intermediate = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((num_tokens, intermediate), dtype=gate_up.dtype, device=gate_up.device)
    block = min(1024, next_power_of_2(intermediate))
    pdl = can_launch_early(gate_up, pdl)
    if num_tokens:
        _silu_and_mul_kernel(
            (num_tokens, div_ceil(intermediate, block)),
            gate_up,
            out,
            gate_up.stride(0),
            INTERMEDIATE=intermediate,
            BLOCK=block,
            num_warps=4,
            pdl=pdl,
        )
    return out


def rope_and_cache(
    qkv: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    q_norm_weight: Tensor | None,
    k_norm_weight: Tensor | None,
    eps: float,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    pdl: bool = False,
) -> Tensor:
    """Per-head RMSNorm of queries and keys (if weights are given), half-split RoPE, and the new keys and values cached.

    qkv [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]; positions, slot_mapping [num_tokens] int64, slot -1 =
    padding; cos_sin [max_positions, rotary_dim] float32, cosines then sines; caches [num_blocks, block_size,
    num_kv_heads, head_dim], written in place. Returns the queries [num_tokens, num_heads, head_dim].
    """
    num_tokens, half = qkv.shape[0], cos_sin.shape[1] // 2
    rest = head_dim - 2 * half
    qk_norm = q_norm_weight is not None
    q_out = torch.empty((num_tokens, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    all_heads = num_heads + 2 * num_kv_heads
    heads = min(8, next_power_of_2(all_heads))
    pdl = can_launch_early(qkv, pdl)
    if num_tokens:
        _rope_and_cache_kernel(
            (num_tokens, div_ceil(all_heads, heads)),
            qkv,
            positions,
            cos_sin,
            q_norm_weight if qk_norm else qkv,
            k_norm_weight if qk_norm else qkv,
            q_out,
            key_cache,
            value_cache,
            slot_mapping,
            qkv.stride(0),
            key_cache.stride(1),
            eps,
            NUM_HEADS=num_heads,
            NUM_KV_HEADS=num_kv_heads,
            HEAD_DIM=head_dim,
            HALF=half,
            BLOCK_HALF=next_power_of_2(half),
            REST=rest,
            BLOCK_REST=next_power_of_2(max(rest, 1)),
            HEADS=heads,
            QK_NORM=qk_norm,
            num_warps=2,
            pdl=pdl,
        )
    return q_out
