"""The small operators between a layer's matrix products on CPU, each one pass over memory.

Owns RMSNorm (with and without the residual addition), SiLU-and-multiply, and rotary positions with the write of keys
and values to the cache. Activations and weights are float32, the cache float32, bfloat16 or e4m3. Grid of each: runs
of rows of about ROW_ELEMENTS numbers, so that a few rows stay on the calling thread.
"""

import torch
from numba.np.numpy_support import carray
from numpy import float32, sqrt
from torch import Tensor

from engines.native.kernels.cpu_compile import helper, kernel, plain
from engines.native.kernels.cpu_team import TEAM, job, launch
from engines.native.kernels.cpu_tiles import BFLOAT16, CACHE_KINDS, E4M3
from engines.native.kernels.cpu_vector import (
    exp,
    float32_pointer,
    int64_pointer,
    to_bfloat16,
    to_e4m3,
    uint8_pointer,
    uint16_pointer,
)

ROW_ELEMENTS = 8192  # work of one item, about 2 microseconds


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As reference.rms_norm; x [num_tokens, N] and weight [N] float32, contiguous."""
    assert plain(torch.float32, x, weight)
    out = torch.empty_like(x)
    _norm(TEAM.address, x.data_ptr(), 0, weight.data_ptr(), eps, x.shape[0], x.shape[1], 0, out.data_ptr())
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As reference.add_rms_norm; x and residual [num_tokens, N] and weight [N] float32, contiguous."""
    assert plain(torch.float32, x, residual, weight)
    assert x.shape == residual.shape
    out, total = torch.empty_like(x), torch.empty_like(x)
    _norm(
        TEAM.address,
        x.data_ptr(),
        residual.data_ptr(),
        weight.data_ptr(),
        eps,
        x.shape[0],
        x.shape[1],
        total.data_ptr(),
        out.data_ptr(),
    )
    return out, total


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """As reference.silu_and_mul; gate_up [num_tokens, 2 * I] float32, contiguous."""
    assert plain(torch.float32, gate_up)
    out = torch.empty((gate_up.shape[0], gate_up.shape[1] // 2))
    _silu(TEAM.address, gate_up.data_ptr(), out.shape[0], out.shape[1], out.data_ptr())
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
) -> Tensor:
    """As reference.rope_and_cache, but overwrites the keys in qkv.

    qkv, cos_sin and the norm weights are float32, the caches float32, bfloat16 or e4m3, all contiguous.
    """
    assert plain(torch.float32, qkv, cos_sin)
    assert plain(torch.int64, positions, slot_mapping)
    assert key_cache.dtype in CACHE_KINDS
    assert plain(key_cache.dtype, key_cache, value_cache)
    q = torch.empty((qkv.shape[0], num_heads, head_dim))
    _rope(
        TEAM.address,
        qkv.data_ptr(),
        positions.data_ptr(),
        cos_sin.data_ptr(),
        cos_sin.shape[1],
        0 if q_norm_weight is None else q_norm_weight.data_ptr(),
        0 if k_norm_weight is None else k_norm_weight.data_ptr(),
        eps,
        key_cache.data_ptr(),
        value_cache.data_ptr(),
        CACHE_KINDS[key_cache.dtype],
        slot_mapping.data_ptr(),
        qkv.shape[0],
        num_heads,
        num_kv_heads,
        head_dim,
        q.data_ptr(),
    )
    return q


@helper
def _rows_per_item(width):
    return max(ROW_ELEMENTS // width, 1)


@helper
def _inverse_rms(row, eps):
    squares = float32(0.0)
    for i in range(row.size):
        squares += row[i] * row[i]
    return float32(1.0) / sqrt(squares / float32(row.size) + float32(eps))


@helper
def _norm_rows(item, x, residual, weight, eps, num_rows, width, total, out):
    weights = carray(float32_pointer(weight), width)
    rows = _rows_per_item(width)
    for index in range(item * rows, min((item + 1) * rows, num_rows)):
        offset = index * width * 4
        row = carray(float32_pointer(x + offset), width)
        if residual != 0:
            added = carray(float32_pointer(residual + offset), width)
            summed = carray(float32_pointer(total + offset), width)
            for i in range(width):
                summed[i] = row[i] + added[i]
            row = summed
        scale = _inverse_rms(row, eps)
        result = carray(float32_pointer(out + offset), width)
        for i in range(width):
            result[i] = row[i] * scale * weights[i]


@kernel("void(int64, int64, int64, int64, float64, int64, int64, int64, int64)")
def _norm(team, x, residual, weight, eps, num_rows, width, total, out):
    """residual and total are 0 for the plain norm."""
    rows = _rows_per_item(width)
    arguments = (x, residual, weight, eps, num_rows, width, total, out)
    launch(team, job((num_rows + rows - 1) // rows, _norm_rows, arguments))


@helper
def _silu_rows(item, gate_up, num_rows, width, out):
    rows = _rows_per_item(4 * width)  # the exponential weighs more than a norm's pass
    for index in range(item * rows, min((item + 1) * rows, num_rows)):
        gate = carray(float32_pointer(gate_up + index * width * 8), width)
        up = carray(float32_pointer(gate_up + index * width * 8 + width * 4), width)
        result = carray(float32_pointer(out + index * width * 4), width)
        for i in range(width):
            result[i] = gate[i] / (float32(1.0) + exp(-gate[i])) * up[i]


@kernel("void(int64, int64, int64, int64, int64)")
def _silu(team, gate_up, num_rows, width, out):
    rows = _rows_per_item(4 * width)
    launch(team, job((num_rows + rows - 1) // rows, _silu_rows, (gate_up, num_rows, width, out)))


@helper
def _normalize_and_rotate(head, norm_weight, eps, angles, out):
    """out = head, normalized where norm_weight is not 0, rotated by the angles of its position."""
    half = angles.size // 2
    if norm_weight == 0:
        for i in range(head.size):
            out[i] = head[i]
    else:
        weights = carray(float32_pointer(norm_weight), head.size)
        scale = _inverse_rms(head, eps)
        for i in range(head.size):
            out[i] = head[i] * scale * weights[i]
    for i in range(half):
        first, second = out[i], out[i + half]
        out[i] = first * angles[i] - second * angles[i + half]
        out[i + half] = second * angles[i] + first * angles[i + half]


@helper
def _store(source, cache, index, kind):
    """Write a head [D] as head number `index` of a cache, in the cache's dtype."""
    width = source.size
    if kind == E4M3:
        codes = carray(uint8_pointer(cache + index * width), width)
        for i in range(width):
            codes[i] = to_e4m3(source[i])
    elif kind == BFLOAT16:
        bits = carray(uint16_pointer(cache + index * width * 2), width)
        for i in range(width):
            bits[i] = to_bfloat16(source[i])
    else:
        numbers = carray(float32_pointer(cache + index * width * 4), width)
        for i in range(width):
            numbers[i] = source[i]


@helper
def _rope_rows(
    item,
    qkv,
    positions,
    cos_sin,
    rotary_dim,
    q_norm,
    k_norm,
    eps,
    key_cache,
    value_cache,
    kind,
    slot_mapping,
    num_tokens,
    num_heads,
    num_kv_heads,
    head_dim,
    q_out,
):
    num_all_heads = num_heads + 2 * num_kv_heads
    rows = _rows_per_item(num_all_heads * head_dim)
    position_of, slot_of = carray(int64_pointer(positions), num_tokens), carray(int64_pointer(slot_mapping), num_tokens)
    for token in range(item * rows, min((item + 1) * rows, num_tokens)):
        angles = carray(float32_pointer(cos_sin + position_of[token] * rotary_dim * 4), rotary_dim)
        heads = qkv + token * num_all_heads * head_dim * 4
        for head in range(num_heads):
            source = carray(float32_pointer(heads + head * head_dim * 4), head_dim)
            target = carray(float32_pointer(q_out + (token * num_heads + head) * head_dim * 4), head_dim)
            _normalize_and_rotate(source, q_norm, eps, angles, target)
        slot = slot_of[token]
        if slot < 0:
            continue
        for head in range(num_kv_heads):
            key = carray(float32_pointer(heads + (num_heads + head) * head_dim * 4), head_dim)
            value = carray(float32_pointer(heads + (num_heads + num_kv_heads + head) * head_dim * 4), head_dim)
            _normalize_and_rotate(key, k_norm, eps, angles, key)  # in place: qkv is not read again
            _store(key, key_cache, slot * num_kv_heads + head, kind)
            _store(value, value_cache, slot * num_kv_heads + head, kind)


@kernel(
    "void(int64, int64, int64, int64, int64, int64, int64, float64,"
    " int64, int64, int64, int64, int64, int64, int64, int64, int64)"
)
def _rope(
    team,
    qkv,
    positions,
    cos_sin,
    rotary_dim,
    q_norm,
    k_norm,
    eps,
    key_cache,
    value_cache,
    kind,
    slot_mapping,
    num_tokens,
    num_heads,
    num_kv_heads,
    head_dim,
    q_out,
):
    rows = _rows_per_item((num_heads + 2 * num_kv_heads) * head_dim)
    arguments = (
        qkv,
        positions,
        cos_sin,
        rotary_dim,
        q_norm,
        k_norm,
        eps,
        key_cache,
        value_cache,
        kind,
        slot_mapping,
        num_tokens,
        num_heads,
        num_kv_heads,
        head_dim,
        q_out,
    )
    launch(team, job((num_tokens + rows - 1) // rows, _rope_rows, arguments))
