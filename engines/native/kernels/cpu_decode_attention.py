"""Attention of sequences with one query token over the paged KV cache, on CPU.

Owns the decode case only; prefill chunks are `cpu_prefill_attention`'s. Queries and outputs are float32, the cache
float32 or bfloat16, any block and group size; the head size is a multiple of LANES (`cpu_attention` sends others to
the prefill kernel).

Grid: sequence x KV head. An item streams its keys and values from the cache once, CHUNK positions at a time, for all
query heads of its group, with the running softmax of arXiv 1805.02867 in float32. It does not depend on the other
sequences: a sequence's result is bit for bit the same in any batch.
"""

from numba import int64
from numba.np.numpy_support import carray
from numpy import empty, float32
from numpy import int64 as numpy_int64

from engines.native.kernels.cpu_compile import helper, kernel
from engines.native.kernels.cpu_ir import LANES
from engines.native.kernels.cpu_team import job, launch
from engines.native.kernels.cpu_tiles import BFLOAT16, FLOAT32, add_weighted, row_dots
from engines.native.kernels.cpu_vector import LOWEST, exp, float32_pointer, int32_pointer, row_max

CHUNK = 64  # positions whose scores are held at a time


def _score_chunk(kind):
    """A helper: scores[g, j] = queries[g] . the key at byte offsets[j] of a cache stored as `kind`, j < count."""

    @helper
    def score_chunk(queries, keys, offsets, count, scores):
        group, width = queries.shape
        vectors, stride, out_stride = width // LANES, width * 4, CHUNK * 4
        x_start, out_start = int64(queries.ctypes.data), int64(scores.ctypes.data)
        for j in range(count):
            key, g = keys + offsets[j], 0
            while g < group:
                x, out = x_start + g * stride, out_start + g * out_stride + j * 4
                if group - g >= 4:
                    row_dots(4, kind, x, stride, key, vectors, out, out_stride)
                    g += 4
                elif group - g == 3:
                    row_dots(3, kind, x, stride, key, vectors, out, out_stride)
                    g += 3
                elif group - g == 2:
                    row_dots(2, kind, x, stride, key, vectors, out, out_stride)
                    g += 2
                else:
                    row_dots(1, kind, x, stride, key, vectors, out, out_stride)
                    g += 1

    return score_chunk


def _add_values(kind):
    """A helper: sums[g] += scores[g, j] * the value at byte offsets[j] of a cache stored as `kind`, j < count."""

    @helper
    def add_values(scores, values, item_bytes, offsets, count, sums):
        group, width = sums.shape
        stride, out_stride = CHUNK * 4, width * 4
        score_start, sum_start = int64(scores.ctypes.data), int64(sums.ctypes.data)
        offset_start = int64(offsets.ctypes.data)
        for vector in range(width // LANES):
            value, g = values + vector * LANES * item_bytes, 0
            while g < group:
                weights, out = score_start + g * stride, sum_start + g * out_stride + vector * LANES * 4
                if group - g >= 4:
                    add_weighted(4, kind, weights, stride, value, offset_start, count, out, out_stride)
                    g += 4
                elif group - g == 3:
                    add_weighted(3, kind, weights, stride, value, offset_start, count, out, out_stride)
                    g += 3
                elif group - g == 2:
                    add_weighted(2, kind, weights, stride, value, offset_start, count, out, out_stride)
                    g += 2
                else:
                    add_weighted(1, kind, weights, stride, value, offset_start, count, out, out_stride)
                    g += 1

    return add_values


_score_float32, _score_bfloat16 = _score_chunk(FLOAT32), _score_chunk(BFLOAT16)
_add_float32, _add_bfloat16 = _add_values(FLOAT32), _add_values(BFLOAT16)


@helper
def _soften(row, count, highest, total, sums):
    """Turn scores into weights relative to the highest so far and rescale what is summed; gives (highest, total)."""
    for j in range(count, (count + LANES - 1) // LANES * LANES):
        row[j] = LOWEST
    peak = max(highest, row_max(int64(row.ctypes.data), (count + LANES - 1) // LANES))
    rescale = exp(highest - peak)
    for d in range(sums.size):
        sums[d] *= rescale
    added = float32(0.0)
    for j in range(count):
        row[j] = exp(row[j] - peak)
        added += row[j]
    return peak, total * rescale + added


@helper
def _sequence_head(
    item,
    q,
    key_cache,
    value_cache,
    is_bfloat16,
    block_size,
    num_kv_heads,
    group,
    width,
    block_tables,
    max_blocks,
    seq_lens,
    scale,
    window,
    out,
):
    sequence, kv_head = item // num_kv_heads, item % num_kv_heads
    end = int64(carray(int32_pointer(seq_lens), sequence + 1)[sequence])
    table = carray(int32_pointer(block_tables + sequence * max_blocks * 4), max_blocks)
    head_bytes = width * (2 if is_bfloat16 else 4)
    first_head = item * group * width * 4
    source = carray(float32_pointer(q + first_head), (group, width))
    target = carray(float32_pointer(out + first_head), (group, width))
    queries, sums = empty((group, width), float32), empty((group, width), float32)
    state, scores, offsets = empty((group, 2), float32), empty((group, CHUNK), float32), empty(CHUNK, numpy_int64)
    for g in range(group):
        state[g, 0], state[g, 1] = LOWEST, float32(0.0)
        for d in range(width):
            queries[g, d] = source[g, d] * float32(scale)
            sums[g, d] = float32(0.0)
    for start in range(max(0, end - window) if window > 0 else 0, end, CHUNK):
        count = min(CHUNK, end - start)
        block, within = start // block_size, start % block_size
        for j in range(count):
            if within == block_size:
                block, within = block + 1, 0
            offsets[j] = ((table[block] * block_size + within) * num_kv_heads + kv_head) * head_bytes
            within += 1
        if is_bfloat16:
            _score_bfloat16(queries, key_cache, offsets, count, scores)
        else:
            _score_float32(queries, key_cache, offsets, count, scores)
        for g in range(group):
            state[g, 0], state[g, 1] = _soften(scores[g], count, state[g, 0], state[g, 1], sums[g])
        if is_bfloat16:
            _add_bfloat16(scores, value_cache, 2, offsets, count, sums)
        else:
            _add_float32(scores, value_cache, 4, offsets, count, sums)
    for g in range(group):
        for d in range(width):
            target[g, d] = sums[g, d] / state[g, 1] if end > 0 else float32(0.0)


@kernel(
    "void(int64, int64, int64, int64, boolean, int64, int64, int64, int64,"
    " int64, int64, int64, float64, int64, int64, int64)"
)
def decode_attention(
    team,
    q,
    key_cache,
    value_cache,
    is_bfloat16,
    block_size,
    num_kv_heads,
    group,
    width,
    block_tables,
    max_blocks,
    seq_lens,
    scale,
    window,
    num_sequences,
    out,
):
    """q and out [num_sequences, num_kv_heads * group, width]; window 0 is none. Tensors are addresses."""
    arguments = (
        q,
        key_cache,
        value_cache,
        is_bfloat16,
        block_size,
        num_kv_heads,
        group,
        width,
        block_tables,
        max_blocks,
        seq_lens,
        scale,
        window,
        out,
    )
    launch(team, job(num_sequences * num_kv_heads, _sequence_head, arguments))
