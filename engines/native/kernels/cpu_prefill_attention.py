"""Attention of a chunk of query tokens over the paged KV cache, on CPU: prefill, with or without earlier context.

Owns the case of several query tokens a sequence. Queries and outputs are float32, the cache float32 or bfloat16, any
block, head and group size.

One sequence at a time, in two passes over the team:

1. Gather. Grid: KV head x block of KEY_BLOCK keys. Keys and values are copied out of the pages into float32 panels (see
   `cpu_tiles`): keys transposed, [key panel][dimension][PANEL keys], values as they are, [dimension panel][key][PANEL
   dimensions]. Both products are then `panel_tile`s, as in a linear layer.
2. Attend. Grid: KV head x block of ROWS query rows, the longest first. The query heads that share a KV head are rows
   beside each other: row = token * group + head. A running softmax (arXiv 1805.02867) goes over the key blocks.

Key blocks start at multiples of KEY_BLOCK from position 0, and each row's arithmetic is its own: a token's result does
not depend on how its prompt was cut into chunks, nor on the batch.
"""

from numba import int64
from numba.np.numpy_support import carray
from numpy import float32, zeros

from engines.native.kernels.cpu_compile import helper, kernel
from engines.native.kernels.cpu_ir import LANES
from engines.native.kernels.cpu_team import job, launch
from engines.native.kernels.cpu_tiles import BFLOAT16, E4M3, FLOAT32, PANEL, TILE_ROWS, item_bytes, panel_tile
from engines.native.kernels.cpu_vector import (
    LOWEST,
    exp,
    float32_pointer,
    from_bfloat16,
    from_e4m3,
    int32_pointer,
    keep_alive,
    row_max,
    uint8_pointer,
    uint16_pointer,
)

KEY_BLOCK = 128  # keys whose scores are held at a time, a multiple of PANEL
ROWS = 32  # query rows of an item, a multiple of TILE_ROWS


def scratch_bytes(num_keys: int, num_kv_heads: int, width: int) -> int:
    """Scratch memory for one sequence whose queries see num_keys keys at most."""
    num_keys = -(-num_keys // KEY_BLOCK) * KEY_BLOCK + KEY_BLOCK  # the first block may start before the first key seen
    padded_width = -(-width // PANEL) * PANEL
    return num_kv_heads * num_keys * (width + padded_width) * 4


@helper
def _copy_row(source, kind, width, target, stride):
    """Widen `width` numbers at an address to target[i * stride]."""
    if kind == E4M3:
        codes = carray(uint8_pointer(source), width)
        for i in range(width):
            target[i * stride] = from_e4m3(codes[i])
    elif kind == BFLOAT16:
        numbers = carray(uint16_pointer(source), width)
        for i in range(width):
            target[i * stride] = from_bfloat16(numbers[i])
    else:
        numbers32 = carray(float32_pointer(source), width)
        for i in range(width):
            target[i * stride] = numbers32[i]


@helper
def _gather(item, key_cache, value_cache, kind, block_size, num_kv_heads, width, table, first, end, num_keys, scratch):
    """Copy one block of keys and values of one head into panels; zeros past the last key and the last dimension."""
    num_blocks, value_panels = num_keys // KEY_BLOCK, (width + PANEL - 1) // PANEL
    kv_head, block_start = item // num_blocks, item % num_blocks * KEY_BLOCK
    head_numbers = num_keys * (width + value_panels * PANEL)
    panels = carray(float32_pointer(scratch + kv_head * head_numbers * 4), head_numbers)
    pages = carray(int32_pointer(table), (end + block_size - 1) // block_size)
    row_bytes = width * item_bytes(kind)
    for index in range(block_start, block_start + KEY_BLOCK):
        key_at = index // PANEL * PANEL * width + index % PANEL
        value_at = num_keys * width + index * PANEL
        if first + index < end:
            page = (first + index) // block_size
            slot = pages[page] * block_size + (first + index - page * block_size)
            offset = (slot * num_kv_heads + kv_head) * row_bytes
            _copy_row(key_cache + offset, kind, width, panels[key_at:], PANEL)
            for panel in range(value_panels):
                start = panel * PANEL
                part = value_cache + offset + start * item_bytes(kind)
                target = panels[value_at + panel * num_keys * PANEL :]
                _copy_row(part, kind, min(PANEL, width - start), target, 1)
                for i in range(width - start, PANEL):
                    target[i] = float32(0.0)
        else:
            for i in range(width):
                panels[key_at + i * PANEL] = float32(0.0)


@helper
def _soften_row(row, low, high, state, sums):
    """Weights of the keys low to high - 1 of a block, zero for the others; the sums so far are rescaled."""
    for j in range(row.size):
        if j < low or j >= high:
            row[j] = LOWEST
    peak = max(state[0], row_max(int64(row.ctypes.data), row.size // LANES))
    rescale = exp(state[0] - peak)
    added = float32(0.0)
    for j in range(row.size):
        weight = exp(row[j] - peak)
        row[j] = weight if j >= low and j < high else float32(0.0)
        added += row[j]
    for d in range(sums.size):
        sums[d] *= rescale
    state[0], state[1] = peak, state[1] * rescale + added


@helper
def _attend(item, q, out, num_kv_heads, group, width, scale, window, query_len, first, end, num_keys, scratch):
    """One block of query rows of one KV head. q and out are addresses of the sequence's first token."""
    num_row_blocks = (query_len * group + ROWS - 1) // ROWS
    kv_head, row_block = item % num_kv_heads, num_row_blocks - 1 - item // num_kv_heads
    first_row = row_block * ROWS
    num_rows = min(ROWS, query_len * group - first_row)
    value_panels = (width + PANEL - 1) // PANEL
    padded_width = value_panels * PANEL
    keys = scratch + kv_head * num_keys * (width + padded_width) * 4
    values = keys + num_keys * width * 4
    shape = (query_len, num_kv_heads, group, width)
    source, target = carray(float32_pointer(q), shape), carray(float32_pointer(out), shape)

    queries, sums = zeros((ROWS, width), float32), zeros((ROWS, padded_width), float32)
    scores, state = zeros((ROWS, KEY_BLOCK), float32), zeros((ROWS, 2), float32)
    for row in range(num_rows):
        token, head = (first_row + row) // group, (first_row + row) % group
        state[row, 0] = LOWEST
        for d in range(width):
            queries[row, d] = source[token, kv_head, head, d] * float32(scale)
    x, s, o = int64(queries.ctypes.data), int64(scores.ctypes.data), int64(sums.ctypes.data)

    first_position = end - query_len + first_row // group
    last_position = end - query_len + (first_row + num_rows - 1) // group
    lowest = max(0, first_position - window + 1) if window > 0 else 0
    for start in range(max(first, lowest // KEY_BLOCK * KEY_BLOCK), last_position + 1, KEY_BLOCK):
        count = min(KEY_BLOCK, last_position + 1 - start)
        block_keys = keys + (start - first) * width * 4
        for row in range(0, num_rows, TILE_ROWS):
            for key in range(0, count, PANEL):
                panel, at = block_keys + key * width * 4, s + (row * KEY_BLOCK + key) * 4
                panel_tile(TILE_ROWS, FLOAT32, 0, x + row * width * 4, width * 4, panel, width, at, KEY_BLOCK * 4)
        for row in range(num_rows):
            position = end - query_len + (first_row + row) // group
            low = max(0, position - window + 1 - start) if window > 0 else 0
            high = min(position + 1 - start, KEY_BLOCK)
            _soften_row(scores[row], low, high, state[row], sums[row])
        for row in range(0, num_rows, TILE_ROWS):
            for panel in range(value_panels):
                block_values = values + (panel * num_keys + start - first) * PANEL * 4
                at, stride = o + (row * padded_width + panel * PANEL) * 4, padded_width * 4
                weights = s + row * KEY_BLOCK * 4
                panel_tile(TILE_ROWS, FLOAT32, 1, weights, KEY_BLOCK * 4, block_values, count, at, stride)
    for row in range(num_rows):
        token, head = (first_row + row) // group, (first_row + row) % group
        for d in range(width):
            target[token, kv_head, head, d] = sums[row, d] / state[row, 1]
    keep_alive(queries)


@kernel(
    "void(int64, int64, int64, int64, int64, int64, int64, int64, int64,"
    " int64, int64, int64, int64, float64, int64, int64, int64, int64, int64)"
)
def prefill_attention(
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
    query_start_loc,
    scale,
    window,
    first_sequence,
    num_sequences,
    scratch,
    out,
):
    """Sequences first_sequence to num_sequences - 1. q and out [num_tokens, num_kv_heads * group, width]; window 0 is
    none; scratch holds `scratch_bytes` of the longest sequence. Tensors are addresses."""
    starts = carray(int32_pointer(query_start_loc), num_sequences + 1)
    lengths = carray(int32_pointer(seq_lens), num_sequences)
    for sequence in range(first_sequence, num_sequences):
        query_len, end = int64(starts[sequence + 1] - starts[sequence]), int64(lengths[sequence])
        if query_len == 0:
            continue
        lowest = max(0, end - query_len - window + 1) if window > 0 else 0
        first = lowest // KEY_BLOCK * KEY_BLOCK
        num_keys = (end - first + KEY_BLOCK - 1) // KEY_BLOCK * KEY_BLOCK
        table = block_tables + sequence * max_blocks * 4
        pages = (key_cache, value_cache, kind, block_size, num_kv_heads, width, table, first, end)
        launch(team, job(num_keys // KEY_BLOCK * num_kv_heads, _gather, (*pages, num_keys, scratch)))
        offset = int64(starts[sequence]) * num_kv_heads * group * width * 4
        row_blocks = (query_len * group + ROWS - 1) // ROWS
        rows = (q + offset, out + offset, num_kv_heads, group, width, scale, window, query_len, first, end)
        launch(team, job(row_blocks * num_kv_heads, _attend, (*rows, num_keys, scratch)))
