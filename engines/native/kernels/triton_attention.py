"""Paged attention in Triton: split-KV decode with packed query groups, and varlen chunked prefill.

Both read the paged cache [num_blocks, block_size, num_kv_heads, head_dim] through block tables, for any block size,
and do softmax online in base 2 (Milakov & Gimelshein, arXiv 1805.02867; FlashAttention, arXiv 2205.14135). The
query heads that share a KV head are packed as rows of one tile, so K and V are read once per group.

Layout: `_decode_kernel` grid (num_kv_heads, num_splits, num_decodes); `_prefill_kernel` grid (num_kv_heads, query
tiles). Accumulation in float32, probabilities rounded to the cache dtype before the second product, as
FlashAttention does. No host synchronisation: grids come from host upper bounds, lengths are read on the device, so
both can be captured in a CUDA graph. A sequence of length 0 is padding and yields zeros.

The plain PyTorch twin is reference.paged_attention.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from engines.native.kernels.triton_launch import (
    ARRIVAL_COUNTERS,
    arrival_counters,
    can_launch_early,
    release_successor,
    wait_for_predecessor,
)
from engines.native.layers.attention_metadata import AttentionMetadata

LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class TileConfig:
    """How a kernel is cut: rows of queries and of keys a tile, warps, pipeline stages."""

    query_rows: int
    key_rows: int
    num_warps: int
    num_stages: int


DECODE_CONFIG = TileConfig(query_rows=16, key_rows=64, num_warps=4, num_stages=3)
PREFILL_CONFIG = TileConfig(query_rows=128, key_rows=64, num_warps=8, num_stages=3)
# Blocks that saturate memory: about this many for each of 132 multiprocessors, counted over sequences, heads, splits.
DECODE_BLOCKS_WANTED = 1024
MAX_SPLITS = 64


@triton.jit
def _load_blocks(table, start, seq_len, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr):
    """Block ids of the positions start..start+TILE: a scalar where a tile lies within a block, else one a position."""
    if BLOCK_SIZE % TILE == 0:
        return tl.load(table + start // BLOCK_SIZE, mask=start < seq_len, other=0)
    else:
        positions = start + tl.arange(0, TILE)
        return tl.load(table + positions // BLOCK_SIZE, mask=positions < seq_len, other=0)


@triton.jit
def _attend_tiles(
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


@triton.jit
def _decode_kernel(
    query_ptr,  # [num_tokens, num_kv_heads * GROUP, HEAD_DIM]
    key_cache,
    value_cache,
    out_ptr,  # like query
    partial_out,  # [num_decodes, num_kv_heads, num_splits, GROUP_ROWS, HEAD_DIM] float32
    partial_lse,  # [num_decodes, num_kv_heads, num_splits, GROUP_ROWS] float32, base 2
    arrived,  # [num_decodes * num_kv_heads] int32 zeros, left at zero
    block_tables,
    seq_lens,
    scale_log2,
    sliding_window,
    query_stride,
    table_stride,
    slot_stride,
    split_tokens,  # > 0: splits of that many tokens whatever the batch; 0: the sequence over all splits
    BLOCK_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TILE: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    MERGE_SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    kv_head, split, seq = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_kv_heads, num_splits = tl.num_programs(0), tl.num_programs(1)
    release_successor(PDL)
    wait_for_predecessor(PDL)

    seq_len = tl.load(seq_lens + seq)
    first = 0
    if sliding_window > 0:
        first = tl.maximum(seq_len - sliding_window, 0) // TILE * TILE
    num_tiles = tl.cdiv(seq_len - first, TILE)
    tiles_per_split = tl.cdiv(num_tiles, num_splits)
    if split_tokens > 0:
        tiles_per_split = tl.maximum(tiles_per_split, split_tokens // TILE)
    active_splits = tl.cdiv(num_tiles, tl.maximum(tiles_per_split, 1))

    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    row_offsets = seq.to(tl.int64) * query_stride + (kv_head * GROUP + rows[:, None]) * HEAD_DIM + dims[None, :]
    row_mask = (rows < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    if split >= active_splits:
        if (split == 0) & (seq_len == 0):
            tl.store(out_ptr + row_offsets, tl.zeros([BLOCK_M, BLOCK_D], out_ptr.dtype.element_ty), mask=row_mask)
        return

    query = tl.load(query_ptr + row_offsets, mask=row_mask, other=0.0)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    begin = first + split * tiles_per_split * TILE
    end = tl.minimum(begin + tiles_per_split * TILE, seq_len)
    acc, row_max, row_sum = _attend_tiles(
        begin,
        end,
        query,
        tl.full([BLOCK_M], 0, tl.int32) + seq_len - 1,
        acc,
        row_max,
        row_sum,
        key_cache,
        value_cache,
        block_tables + seq.to(tl.int64) * table_stride,
        seq_len,
        scale_log2,
        sliding_window,
        kv_head * HEAD_DIM,
        slot_stride,
        BLOCK_SIZE,
        HEAD_DIM,
        BLOCK_D,
        TILE,
        True,
        NUM_STAGES,
    )
    acc = acc / row_sum[:, None]
    if active_splits == 1:
        tl.store(out_ptr + row_offsets, acc.to(out_ptr.dtype.element_ty), mask=row_mask)
        return

    pair = seq * num_kv_heads + kv_head
    partial_row = (pair.to(tl.int64) * num_splits + split) * GROUP_ROWS + rows
    stored = rows < GROUP_ROWS
    tl.store(partial_lse + partial_row, row_max + tl.log2(row_sum), mask=stored)
    tl.store(
        partial_out + partial_row[:, None] * HEAD_DIM + dims[None, :],
        acc,
        mask=stored[:, None] & (dims < HEAD_DIM)[None, :],
    )
    # The last block of this (sequence, head) to arrive merges all splits, in their order: the sum does not depend
    # on who comes last. The barrier puts every thread's stores before thread 0's release.
    tl.debug_barrier()
    if tl.atomic_add(arrived + pair, 1, sem="acq_rel") < active_splits - 1:
        return
    tl.store(arrived + pair, 0)
    _merge_splits(
        partial_out + pair.to(tl.int64) * num_splits * GROUP_ROWS * HEAD_DIM,
        partial_lse + pair.to(tl.int64) * num_splits * GROUP_ROWS,
        out_ptr + seq.to(tl.int64) * query_stride + kv_head * GROUP * HEAD_DIM,
        active_splits,
        GROUP,
        GROUP_ROWS,
        HEAD_DIM,
        BLOCK_D,
        MERGE_SPLITS,
    )


@triton.jit
def _merge_splits(
    partial_out,
    partial_lse,
    out,
    active_splits,
    GROUP: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MERGE_SPLITS: tl.constexpr,
):
    """Softmax-weighted sum of the splits' outputs, MERGE_SPLITS of them at a time; loads bypass L1 (.cg)."""
    heads = tl.arange(0, GROUP_ROWS)
    dims = tl.arange(0, BLOCK_D)
    chunk = tl.arange(0, MERGE_SPLITS)
    acc = tl.zeros([GROUP_ROWS, BLOCK_D], tl.float32)
    total = tl.zeros([GROUP_ROWS], tl.float32)
    running_max = tl.full([GROUP_ROWS], float("-inf"), tl.float32)
    for first in range(0, active_splits, MERGE_SPLITS):
        splits = first + chunk
        rows = splits[:, None] * GROUP_ROWS + heads[None, :]
        lse = tl.load(
            partial_lse + rows, mask=(splits < active_splits)[:, None], other=float("-inf"), cache_modifier=".cg"
        )
        partial = tl.load(
            partial_out + rows[:, :, None] * HEAD_DIM + dims[None, None, :],
            mask=(splits < active_splits)[:, None, None] & (dims < HEAD_DIM)[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        new_max = tl.maximum(running_max, tl.max(lse, axis=0))
        weights = tl.exp2(lse - new_max[None, :])
        rescale = tl.exp2(running_max - new_max)
        total = total * rescale + tl.sum(weights, axis=0)
        acc = acc * rescale[:, None] + tl.sum(partial * weights[:, :, None], axis=0)
        running_max = new_max
    merged = acc / total[:, None]
    mask = (heads < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    tl.store(out + heads[:, None] * HEAD_DIM + dims[None, :], merged.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _prefill_kernel(
    query_ptr,  # [num_tokens, num_kv_heads * GROUP, HEAD_DIM]
    key_cache,
    value_cache,
    out_ptr,
    block_tables,
    seq_lens,
    query_start_loc,
    num_seqs,
    scale_log2,
    sliding_window,
    query_stride,
    table_stride,
    slot_stride,
    BLOCK_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TILE: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    TOKENS: tl.constexpr = BLOCK_M // GROUP_ROWS
    kv_head = tl.program_id(0)
    # Later tiles of a sequence see more keys: start them first, so that the short ones fill the tail.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    release_successor(PDL)
    wait_for_predecessor(PDL)

    # Sequence s owns the tile numbers from (its first token) // TOKENS + s on: no two sequences share one, and the
    # greatest s whose first number is <= tile is found by bisection.
    origin = tl.load(query_start_loc)
    low, high = 0, num_seqs
    while low < high - 1:
        middle = (low + high) // 2
        if (tl.load(query_start_loc + middle) - origin) // TOKENS + middle <= tile:
            low = middle
        else:
            high = middle
    seq = low
    query_start = tl.load(query_start_loc + seq)
    query_len = tl.load(query_start_loc + seq + 1) - query_start
    first_token = (tile - (query_start - origin) // TOKENS - seq) * TOKENS
    if first_token >= query_len:
        return
    seq_len = tl.load(seq_lens + seq)
    context = seq_len - query_len

    rows = tl.arange(0, BLOCK_M)
    tokens = first_token + rows // GROUP_ROWS
    heads = rows % GROUP_ROWS
    dims = tl.arange(0, BLOCK_D)
    row_offsets = (
        (query_start + tokens[:, None]).to(tl.int64) * query_stride
        + (kv_head * GROUP + heads[:, None]) * HEAD_DIM
        + dims[None, :]
    )
    row_mask = ((tokens < query_len) & (heads < GROUP))[:, None] & (dims < HEAD_DIM)[None, :]
    query = tl.load(query_ptr + row_offsets, mask=row_mask, other=0.0)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    query_positions = context + tokens

    table = block_tables + seq.to(tl.int64) * table_stride
    end = context + tl.minimum(first_token + TOKENS, query_len)
    begin = 0
    # Tiles below this one are visible to every row in full.
    diagonal = (context + first_token + 1) // TILE * TILE
    if sliding_window > 0:
        begin = tl.maximum(context + first_token + 1 - sliding_window, 0) // TILE * TILE
        diagonal = begin
    for masked in tl.static_range(2):
        acc, row_max, row_sum = _attend_tiles(
            diagonal if masked else begin,
            end if masked else diagonal,
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
            kv_head * HEAD_DIM,
            slot_stride,
            BLOCK_SIZE,
            HEAD_DIM,
            BLOCK_D,
            TILE,
            masked == 1,
            NUM_STAGES,
        )
    # Rows past the end of the sequence may have seen no key at all; they are not stored.
    acc = acc / tl.where(row_sum > 0.0, row_sum, 1.0)[:, None]
    tl.store(out_ptr + row_offsets, acc.to(out_ptr.dtype.element_ty), mask=row_mask)


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int = 0,
    *,
    split_tokens: int = 0,
    pdl: bool = False,
) -> Tensor:
    """Causal attention of each query token over its sequence's cached keys and values.

    query [num_tokens, num_heads, head_dim]; caches [num_blocks, block_size, num_kv_heads, head_dim], of one dtype;
    the new tokens' keys and values are already in the cache. Decodes come first (metadata.num_decodes), then prefill
    chunks. sliding_window > 0 limits a token to the last that many positions, itself included. split_tokens > 0 cuts
    decodes at fixed lengths, so that a sequence's sums do not depend on its batch (a multiple of the key tile).
    Returns [num_tokens, num_heads, head_dim]; rows of padding sequences (length 0) are zero.
    """
    out = torch.empty_like(query)
    num_decodes = metadata.num_decodes
    if num_decodes:
        decode_attention(
            query,
            key_cache,
            value_cache,
            out,
            metadata.block_tables,
            metadata.seq_lens[:num_decodes],
            metadata.max_seq_len,
            scale,
            sliding_window,
            split_tokens=split_tokens,
            pdl=pdl,
        )
    if metadata.seq_lens.shape[0] > num_decodes:
        prefill_attention(
            query,
            key_cache,
            value_cache,
            out,
            metadata.block_tables[num_decodes:],
            metadata.seq_lens[num_decodes:],
            metadata.query_start_loc[num_decodes:],
            query.shape[0] - num_decodes,
            scale,
            sliding_window,
            pdl=pdl,
        )
    return out


def num_decode_splits(num_decodes: int, num_kv_heads: int, max_seq_len: int, split_tokens: int = 0) -> int:
    """How many pieces a decode's keys are cut into: enough to fill the GPU at small batch, one at large batch."""
    if split_tokens:
        return triton.cdiv(max_seq_len, split_tokens)
    wanted = triton.cdiv(DECODE_BLOCKS_WANTED, num_decodes * num_kv_heads)
    return max(1, min(wanted, MAX_SPLITS, triton.cdiv(max_seq_len, DECODE_CONFIG.key_rows)))


def decode_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    out: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    max_seq_len: int,
    scale: float,
    sliding_window: int = 0,
    *,
    num_splits: int = 0,
    split_tokens: int = 0,
    pdl: bool = False,
    config: TileConfig = DECODE_CONFIG,
) -> None:
    """One query token a sequence: row i of query and out belongs to seq_lens[i]. Writes out in place."""
    num_decodes, (_, block_size, num_kv_heads, head_dim) = seq_lens.shape[0], key_cache.shape
    group = query.shape[1] // num_kv_heads
    group_rows = triton.next_power_of_2(group)
    assert num_decodes * num_kv_heads <= ARRIVAL_COUNTERS
    num_splits = num_splits or num_decode_splits(num_decodes, num_kv_heads, max_seq_len, split_tokens)
    partial_rows = num_decodes * num_kv_heads * num_splits * group_rows if num_splits > 1 else 1
    partial_out = torch.empty(partial_rows * head_dim, dtype=torch.float32, device=query.device)
    partial_lse = torch.empty(partial_rows, dtype=torch.float32, device=query.device)
    pdl = can_launch_early(query, pdl)
    _decode_kernel[(num_kv_heads, num_splits, num_decodes)](
        query,
        key_cache,
        value_cache,
        out,
        partial_out,
        partial_lse,
        arrival_counters(query.device),
        block_tables,
        seq_lens,
        scale * LOG2_E,
        sliding_window,
        query.stride(0),
        block_tables.stride(0),
        key_cache.stride(1),
        split_tokens,
        BLOCK_SIZE=block_size,
        GROUP=group,
        GROUP_ROWS=group_rows,
        HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        BLOCK_M=max(config.query_rows, group_rows),
        TILE=config.key_rows,
        NUM_STAGES=config.num_stages,
        MERGE_SPLITS=max(1, 32 // group_rows),
        PDL=pdl,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        launch_pdl=pdl,
    )


def prefill_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    out: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    num_query_tokens: int,
    scale: float,
    sliding_window: int = 0,
    *,
    pdl: bool = False,
    config: TileConfig = PREFILL_CONFIG,
) -> None:
    """Ragged chunks of queries; query_start_loc [num_seqs + 1] indexes rows of query and out. Writes out in place.

    num_query_tokens is an upper bound of query_start_loc[-1] - query_start_loc[0], known on the host.
    """
    num_seqs, (_, block_size, num_kv_heads, head_dim) = seq_lens.shape[0], key_cache.shape
    group = query.shape[1] // num_kv_heads
    group_rows = triton.next_power_of_2(group)
    query_rows = max(config.query_rows, group_rows)
    num_tiles = num_query_tokens // (query_rows // group_rows) + num_seqs
    pdl = can_launch_early(query, pdl)
    _prefill_kernel[(num_kv_heads, num_tiles)](
        query,
        key_cache,
        value_cache,
        out,
        block_tables,
        seq_lens,
        query_start_loc,
        num_seqs,
        scale * LOG2_E,
        sliding_window,
        query.stride(0),
        block_tables.stride(0),
        key_cache.stride(1),
        BLOCK_SIZE=block_size,
        GROUP=group,
        GROUP_ROWS=group_rows,
        HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        BLOCK_M=query_rows,
        TILE=config.key_rows,
        NUM_STAGES=config.num_stages,
        PDL=pdl,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        launch_pdl=pdl,
    )
