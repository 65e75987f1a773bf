"""The inner loop that both attention kernels share: tiles of cached keys and values folded into a running softmax.

Softmax is online and in base 2 (Milakov & Gimelshein, arXiv 1805.02867; FlashAttention, arXiv 2205.14135): scores in
float32, probabilities rounded to the products' dtype before the second, sums in float32. A cache in e4m3 is widened
tile by tile. It knows nothing of batches, splits or chunks.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

from dataclasses import dataclass

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class TileConfig:
    """How a kernel is cut: rows of queries and of keys a tile, warps, pipeline stages."""

    query_rows: int
    key_rows: int
    num_warps: int
    num_stages: int


@triton.jit
def _load_blocks(table, start, seq_len, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr):
    """Block ids of the positions start..start+TILE: a scalar where a tile lies within a block, else one a position."""
    if BLOCK_SIZE % TILE == 0:
        return tl.load(table + start // BLOCK_SIZE, mask=start < seq_len, other=0)
    else:
        positions = start + tl.arange(0, TILE)
        return tl.load(table + positions // BLOCK_SIZE, mask=positions < seq_len, other=0)


@triton.jit
def attend_tiles(
    begin,
    end,
    query,
    query_positions,
    acc,
    row_max,
    row_sum,
    key_cache,
    value_cache,
    table,
    seq_len,
    scale_log2,
    sliding_window,
    head_offset,
    slot_stride,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """Fold the key positions begin..end (begin a multiple of TILE) into the running softmax of the query rows."""
    dims = tl.arange(0, BLOCK_D)
    IN_E4M3: tl.constexpr = key_cache.dtype.element_ty == tl.float8e4nv
    if IN_E4M3 and query.dtype == tl.bfloat16:
        query = query.to(tl.float16)  # which holds e4m3 exactly, and takes an eighth of the instructions to make of it
    blocks = _load_blocks(table, begin, seq_len, BLOCK_SIZE, TILE)
    for start in tl.range(begin, end, TILE, num_stages=NUM_STAGES):
        start = tl.multiple_of(start, TILE)
        positions = start + tl.arange(0, TILE)
        in_range = positions < seq_len
        slots = blocks.to(tl.int64) * BLOCK_SIZE + positions % BLOCK_SIZE
        offsets = slots[:, None] * slot_stride + head_offset + dims[None, :]
        # One tile ahead: the loads of keys and values then never wait for the block table, and pipeline deeper.
        blocks = _load_blocks(table, start + TILE, seq_len, BLOCK_SIZE, TILE)
        if MASKED or BLOCK_D != HEAD_DIM:
            # Values beyond the sequence are masked to zero, not only their probabilities: 0 * NaN is NaN.
            readable = in_range[:, None] & (dims < HEAD_DIM)[None, :]
            key = tl.load(key_cache + offsets, mask=readable, other=0.0)
            value = tl.load(value_cache + offsets, mask=readable, other=0.0)
        else:
            key = tl.load(key_cache + offsets)
            value = tl.load(value_cache + offsets)
        if IN_E4M3:
            key, value = key.to(query.dtype), value.to(query.dtype)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale_log2
        if MASKED:
            visible = (positions[None, :] <= query_positions[:, None]) & in_range[None, :]
            if sliding_window > 0:
                visible = visible & (positions[None, :] > query_positions[:, None] - sliding_window)
            scores = tl.where(visible, scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, axis=1))
        # A row that has seen nothing yet keeps -inf; subtracting 0 instead keeps its terms exp2(-inf) = 0.
        base = tl.where(new_max == float("-inf"), 0.0, new_max) if MASKED else new_max
        probabilities = tl.exp2(scores - base[:, None])
        rescale = tl.exp2(row_max - base)
        row_sum = row_sum * rescale + tl.sum(probabilities, axis=1)
        acc = acc * rescale[:, None]
        acc = tl.dot(probabilities.to(value.dtype), value, acc, input_precision="ieee")
        row_max = new_max
    return acc, row_max, row_sum
