"""Split-KV decode attention in Triton: one query token a sequence, read against the paged cache.

The query heads that share a KV head are packed as rows of one tile, so K and V are read once per group. A sequence's
keys are cut into splits so that a small batch fills the GPU; the last block of a (sequence, head) to arrive merges the
splits, in their order, within the same launch. Grid: (num_kv_heads, num_splits, num_decodes). Lengths are read on the
device and what a sequence does not need exits at once, so a captured graph serves any lengths; a sequence of length 0
is padding and yields zeros.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from engines.native.kernels.triton_attention_tiles import LOG2_E, TileConfig, attend_tiles
from engines.native.kernels.triton_launch import (
    ARRIVAL_COUNTERS,
    arrival_counters,
    can_launch_early,
    release_successor,
    wait_for_predecessor,
)

DECODE_CONFIG = TileConfig(query_rows=16, key_rows=64, num_warps=4, num_stages=3)
# Blocks that keep the memory of 132 multiprocessors busy, counted over sequences, KV heads and splits.
DECODE_BLOCKS_WANTED = 1024
MAX_SPLITS = 64


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
    acc, row_max, row_sum = attend_tiles(
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
