"""A head's row normalized and rotated on its way into another kernel: what triton_fused.rope_and_cache does apart.

Statistics and rotations in float32, rounded where the plain PyTorch twin `reference.rope_and_cache` rounds. The whole
head rotates: dimension i with i + HEAD_DIM / 2.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

import triton
import triton.language as tl


@triton.jit
def rotated_rows(
    rows_ptr,  # [ROWS] pointers to the heads' first elements
    exists,  # [ROWS]: others come out as zeros
    position,
    cos_sin_ptr,  # [max_positions, HEAD_DIM] float32, cosines then sines
    norm_ptr,  # [HEAD_DIM], unused without QK_NORM
    eps,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    QK_NORM: tl.constexpr,
):
    """[ROWS, BLOCK_D] in the rows' dtype. An element's partner in the rotation is loaded a second time, from L1."""
    HALF: tl.constexpr = HEAD_DIM // 2
    dims = tl.arange(0, BLOCK_D)
    in_head = dims < HEAD_DIM
    partners = tl.where(dims < HALF, dims + HALF, dims - HALF)
    mask = exists[:, None] & in_head[None, :]
    loaded = tl.load(rows_ptr[:, None] + dims[None, :], mask=mask, other=0.0)
    own = loaded.to(tl.float32)
    partner = tl.load(rows_ptr[:, None] + partners[None, :], mask=mask, other=0.0).to(tl.float32)
    if QK_NORM:
        scale = tl.rsqrt(tl.sum(own * own, axis=1) / HEAD_DIM + eps)
        own_weight = tl.load(norm_ptr + dims, mask=in_head, other=0.0).to(tl.float32)
        partner_weight = tl.load(norm_ptr + partners, mask=in_head, other=0.0).to(tl.float32)
        own = (own * scale[:, None] * own_weight[None, :]).to(loaded.dtype).to(tl.float32)
        partner = (partner * scale[:, None] * partner_weight[None, :]).to(loaded.dtype).to(tl.float32)
    angles = cos_sin_ptr + position * HEAD_DIM + dims % HALF
    cos = tl.load(angles, mask=in_head, other=0.0)
    sin = tl.load(angles + HALF, mask=in_head, other=0.0)
    sin = tl.where(dims < HALF, -sin, sin)
    return (own * cos[None, :] + partner * sin[None, :]).to(loaded.dtype)


@triton.jit
def cache_token(
    key_row,  # pointer to a head's key as the product leaves it
    value_row,
    key_cell,  # pointer to where it is cached
    value_cell,
    position,
    cos_sin_ptr,
    norm_ptr,
    eps,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    QK_NORM: tl.constexpr,
):
    """Write one head's new key, normalized and rotated, and its value to the cache."""
    one = tl.arange(0, 1)
    dims = (one * 0)[:, None] + tl.arange(0, BLOCK_D)[None, :]
    key = rotated_rows(key_row + one, one == 0, position, cos_sin_ptr, norm_ptr, eps, HEAD_DIM, BLOCK_D, QK_NORM)
    value = tl.load(value_row + dims, mask=dims < HEAD_DIM, other=0.0)
    tl.store(key_cell + dims, key.to(key_cell.dtype.element_ty), mask=dims < HEAD_DIM)
    tl.store(value_cell + dims, value.to(value_cell.dtype.element_ty), mask=dims < HEAD_DIM)
