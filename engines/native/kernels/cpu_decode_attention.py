"""Attention of sequences with one query token over the paged KV cache, on CPU.

Owns the decode case only; prefill chunks are `cpu_prefill_attention`'s. Queries and outputs are float32, the cache
float32 or bfloat16, any block and group size; the head size is a multiple of LANES (`cpu_attention` sends others to the
prefill kernel).

Decoding is bound by reading the cache, so each thread reads rows of all KV heads in the order of memory. In two passes
over the team, with the split of https://pytorch.org/blog/flash-decoding:

1. Attend. Grid: sequence x part of PART positions. Within a part, CHUNK positions at a time: scores of all heads, then
   a running softmax (arXiv 1805.02867) and the weighted sum of the values, which were asked for while scoring.
2. Combine. Grid: sequence. The parts' sums, rescaled to the highest score of all.

Parts start at multiples of PART from position 0, and a sequence's arithmetic is its own: its result is bit for bit the
same in any batch.
"""

from numba import int64
from numba.np.numpy_support import carray
from numpy import empty, float32
from numpy import int64 as numpy_int64

from engines.native.kernels.cpu_compile import helper, kernel
from engines.native.kernels.cpu_ir import LANES
from engines.native.kernels.cpu_team import job, launch
from engines.native.kernels.cpu_tiles import BFLOAT16, E4M3, FLOAT32, add_weighted, item_bytes, row_dots
from engines.native.kernels.cpu_vector import (
    LOWEST,
    exp,
    float32_pointer,
    int32_pointer,
    int64_pointer,
    keep_alive,
    prefetch,
    row_max,
)

PART = 128  # positions of an item
CHUNK = 64  # positions whose scores are held at a time
UNROLL = 4  # vectors of a head taken at once, where the head size is a multiple of them
LINE_BYTES = 64  # what one prefetch brings


def _score_chunk(kind):
    """A helper: scores[h, j] = queries[h] . the key of h's KV head in the cache row at rows[j], j < count."""

    @helper
    def score_chunk(queries, num_kv_heads, key_cache, value_cache, rows, count, scores):
        num_heads, width = queries.shape
        group, head_bytes = num_heads // num_kv_heads, width * (item_bytes(kind))
        stride, out_stride, blocks = width * 4, CHUNK * 4, width // (LANES * UNROLL)
        x_start, out_start = int64(queries.ctypes.data), int64(scores.ctypes.data)
        for j in range(count):
            for line in range(rows[j], rows[j] + num_kv_heads * head_bytes, LINE_BYTES):
                prefetch(value_cache + line)
            for kv_head in range(num_kv_heads):
                key, head = key_cache + rows[j] + kv_head * head_bytes, kv_head * group
                end = head + group
                while head < end:
                    x, out, left = x_start + head * stride, out_start + head * out_stride + j * 4, end - head
                    if width % (LANES * UNROLL) != 0:
                        row_dots(1, kind, 1, x, stride, key, width // LANES, out, out_stride)
                        head += 1
                    elif left >= 4:
                        row_dots(4, kind, UNROLL, x, stride, key, blocks, out, out_stride)
                        head += 4
                    elif left == 3:
                        row_dots(3, kind, UNROLL, x, stride, key, blocks, out, out_stride)
                        head += 3
                    elif left == 2:
                        row_dots(2, kind, UNROLL, x, stride, key, blocks, out, out_stride)
                        head += 2
                    else:
                        row_dots(1, kind, UNROLL, x, stride, key, blocks, out, out_stride)
                        head += 1

    return score_chunk


def _add_values(kind):
    """A helper: sums[h] += scores[h, j] * the value of h's KV head in the cache row at rows[j], j < count."""

    @helper
    def add_values(scores, num_kv_heads, value_cache, rows, count, sums):
        num_heads, width = sums.shape
        group, number_bytes = num_heads // num_kv_heads, item_bytes(kind)
        step = LANES * UNROLL if width % (LANES * UNROLL) == 0 else LANES
        stride, out_stride = CHUNK * 4, width * 4
        score_start, sum_start = int64(scores.ctypes.data), int64(sums.ctypes.data)
        offsets = int64(rows.ctypes.data)
        for start in range(0, num_kv_heads * width, step):
            value, head = value_cache + start * number_bytes, start // width * group
            end, column = head + group, start % width
            while head < end:
                weights, out, left = score_start + head * stride, sum_start + head * out_stride + column * 4, end - head
                if step == LANES:
                    add_weighted(1, kind, 1, weights, stride, value, offsets, count, out, out_stride)
                    head += 1
                elif left >= 4:
                    add_weighted(4, kind, UNROLL, weights, stride, value, offsets, count, out, out_stride)
                    head += 4
                elif left == 3:
                    add_weighted(3, kind, UNROLL, weights, stride, value, offsets, count, out, out_stride)
                    head += 3
                elif left == 2:
                    add_weighted(2, kind, UNROLL, weights, stride, value, offsets, count, out, out_stride)
                    head += 2
                else:
                    add_weighted(1, kind, UNROLL, weights, stride, value, offsets, count, out, out_stride)
                    head += 1

    return add_values


_score_float32, _score_bfloat16, _score_e4m3 = map(_score_chunk, (FLOAT32, BFLOAT16, E4M3))
_add_float32, _add_bfloat16, _add_e4m3 = map(_add_values, (FLOAT32, BFLOAT16, E4M3))


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
def _attend(
    item,
    q,
    key_cache,
    value_cache,
    kind,
    block_size,
    num_kv_heads,
    group,
    width,
    block_tables,
    max_blocks,
    seq_lens,
    scale,
    window,
    part_starts,
    num_sequences,
    partial,
):
    """One part of one sequence: highest scores, their totals and weighted sums of all heads to `partial`."""
    starts = carray(int64_pointer(part_starts), num_sequences + 1)
    sequence = 0
    while starts[sequence + 1] <= item:
        sequence += 1
    seq_len = int64(carray(int32_pointer(seq_lens), num_sequences)[sequence])
    lowest = max(0, seq_len - window) if window > 0 else 0
    part = lowest // PART + item - starts[sequence]
    table = carray(int32_pointer(block_tables + sequence * max_blocks * 4), max_blocks)
    num_heads, row_bytes = num_kv_heads * group, num_kv_heads * width * item_bytes(kind)
    source = carray(float32_pointer(q + sequence * num_heads * width * 4), (num_heads, width))
    result = carray(float32_pointer(partial + item * num_heads * (width + 2) * 4), (num_heads, width + 2))
    queries, sums = empty((num_heads, width), float32), empty((num_heads, width), float32)
    scores, rows = empty((num_heads, CHUNK), float32), empty(CHUNK, numpy_int64)
    for head in range(num_heads):
        result[head, 0], result[head, 1] = LOWEST, float32(0.0)
        for d in range(width):
            queries[head, d] = source[head, d] * float32(scale)
            sums[head, d] = float32(0.0)
    end = min(seq_len, (part + 1) * PART)
    for start in range(max(lowest, part * PART), end, CHUNK):
        count = min(CHUNK, end - start)
        block, within = start // block_size, start % block_size
        for j in range(count):
            if within == block_size:
                block, within = block + 1, 0
            rows[j] = (table[block] * block_size + within) * row_bytes
            within += 1
        if kind == E4M3:
            _score_e4m3(queries, num_kv_heads, key_cache, value_cache, rows, count, scores)
        elif kind == BFLOAT16:
            _score_bfloat16(queries, num_kv_heads, key_cache, value_cache, rows, count, scores)
        else:
            _score_float32(queries, num_kv_heads, key_cache, value_cache, rows, count, scores)
        for head in range(num_heads):
            state = _soften(scores[head], count, result[head, 0], result[head, 1], sums[head])
            result[head, 0], result[head, 1] = state
        if kind == E4M3:
            _add_e4m3(scores, num_kv_heads, value_cache, rows, count, sums)
        elif kind == BFLOAT16:
            _add_bfloat16(scores, num_kv_heads, value_cache, rows, count, sums)
        else:
            _add_float32(scores, num_kv_heads, value_cache, rows, count, sums)
    for head in range(num_heads):
        for d in range(width):
            result[head, d + 2] = sums[head, d]


@helper
def _combine(sequence, num_heads, width, part_starts, num_sequences, num_parts, partial, out):
    starts = carray(int64_pointer(part_starts), num_sequences + 1)
    first, last = starts[sequence], starts[sequence + 1]
    parts = carray(float32_pointer(partial), (num_parts, num_heads, width + 2))
    target = carray(float32_pointer(out + sequence * num_heads * width * 4), (num_heads, width))
    for head in range(num_heads):
        highest, total = LOWEST, float32(0.0)
        for part in range(first, last):
            highest = max(highest, parts[part, head, 0])
        for d in range(width):
            target[head, d] = float32(0.0)
        for part in range(first, last):
            rescale = exp(parts[part, head, 0] - highest)
            total += rescale * parts[part, head, 1]
            for d in range(width):
                target[head, d] += rescale * parts[part, head, d + 2]
        if last > first:
            for d in range(width):
                target[head, d] /= total


@kernel(
    "void(int64, int64, int64, int64, int64, int64, int64, int64, int64,"
    " int64, int64, int64, float64, int64, int64, int64)"
)
def decode_attention(
    team,
    q,
    key_cache,
    value_cache,
    kind,
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
    lengths, starts = carray(int32_pointer(seq_lens), num_sequences), empty(num_sequences + 1, numpy_int64)
    starts[0] = 0
    for sequence in range(num_sequences):
        seq_len = int64(lengths[sequence])
        lowest = max(0, seq_len - window) if window > 0 else 0
        starts[sequence + 1] = starts[sequence] + (seq_len + PART - 1) // PART - lowest // PART
    num_parts, num_heads = int64(starts[num_sequences]), num_kv_heads * group
    partial = empty(num_parts * num_heads * (width + 2), float32)
    part_starts, partials = int64(starts.ctypes.data), int64(partial.ctypes.data)
    cache = (key_cache, value_cache, kind, block_size, num_kv_heads, group, width, block_tables, max_blocks)
    parts = (seq_lens, scale, window, part_starts, num_sequences, partials)
    launch(team, job(num_parts, _attend, (q, *cache, *parts)))
    sums = (num_heads, width, part_starts, num_sequences, num_parts, partials, out)
    launch(team, job(num_sequences, _combine, sums))
    keep_alive(starts)
    keep_alive(partial)
