"""Split-KV decode attention in Triton: one query token a sequence, read against the paged cache.

The query heads that share a KV head are packed as rows of one tile, so K and V are read once per group. A sequence's
keys are cut into splits so that a small batch fills the GPU; the last block of a (sequence, head) to arrive merges the
splits, in their order, within the same launch. Grid: (num_kv_heads, num_splits, num_decodes). Lengths are read on the
device and what a sequence does not need exits at once, so a captured graph serves any lengths; a sequence of length 0
is padding and yields zeros.

In a step that only decodes the kernel can take the product's rows as they are (`rotary`): it normalizes and rotates its
queries itself, and the block with a sequence's last keys writes the new key and value before it reads them. That saves
a launch, which for few sequences of a small model takes as long as half the attention.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

import torch
import triton.language as tl
from torch import Tensor

from engines.native.kernels.ops import Rotary
from engines.native.kernels.triton_attention_merge import merge_splits
from engines.native.kernels.triton_attention_tiles import LOG2_E, TileConfig, attend_tiles
from engines.native.kernels.triton_kernel import kernel
from engines.native.kernels.triton_launch import (
    ARRIVAL_COUNTERS,
    arrival_counters,
    can_launch_early,
    div_ceil,
    next_power_of_2,
    release_successor,
    wait_for_predecessor,
)
from engines.native.kernels.triton_rotary import cache_token, rotated_rows

DECODE_CONFIG = TileConfig(query_rows=16, key_rows=64, num_warps=4, num_stages=3)
_SHALLOW_CONFIG = TileConfig(query_rows=16, key_rows=64, num_warps=4, num_stages=2)
_WIDE_CONFIG = TileConfig(query_rows=16, key_rows=16, num_warps=4, num_stages=3)  # rows of keys beyond 256 bytes
# Sequences, KV heads and splits together: what 132 multiprocessors hold at once, three blocks each.
DECODE_BLOCKS = 396
# The same with a pipeline of two stages, of which five fit: worth it where all then run at once, and not in two turns.
_SHALLOW_BLOCKS = 660
MAX_SPLITS = 16  # more cost more in the merge than they gain, even for one sequence of 16,000 tokens


@kernel(varying=["block_tables", "seq_lens", "sliding_window", "table_stride", "split_tokens"])
def _decode_kernel(
    query_ptr,  # [num_tokens, num_kv_heads * GROUP, HEAD_DIM], with ROPE followed by the keys and values of the token
    key_cache,
    value_cache,
    out_ptr,  # [num_tokens, num_kv_heads * GROUP, HEAD_DIM] contiguous
    partial_ptr,  # [num_decodes, num_kv_heads, 2: output and its log2 of sum, num_splits, GROUP_ROWS, BLOCK_D] float32
    arrived,  # [num_decodes * num_kv_heads] int32 zeros, left at zero
    block_tables,
    seq_lens,
    cos_sin_ptr,  # [max_positions, HEAD_DIM] float32; this and the next three unused without ROPE
    q_norm_ptr,  # [HEAD_DIM], unused without QK_NORM
    k_norm_ptr,
    eps,
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
    ROPE: tl.constexpr,
    QK_NORM: tl.constexpr,
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
    heads = kv_head * GROUP + rows
    row_mask = (rows < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    query_row = query_ptr + seq.to(tl.int64) * query_stride
    if not ROPE:  # under way together with the length
        query = tl.load(query_row + heads[:, None] * HEAD_DIM + dims[None, :], mask=row_mask, other=0.0)
    out_offsets = (seq.to(tl.int64) * num_kv_heads * GROUP + heads[:, None]) * HEAD_DIM + dims[None, :]
    table = block_tables + seq.to(tl.int64) * table_stride
    if split >= active_splits:
        if (split == 0) & (seq_len == 0):
            tl.store(out_ptr + out_offsets, tl.zeros([BLOCK_M, BLOCK_D], out_ptr.dtype.element_ty), mask=row_mask)
        return
    if ROPE:
        position = seq_len - 1
        query = rotated_rows(
            query_row + heads * HEAD_DIM, rows < GROUP, position, cos_sin_ptr, q_norm_ptr, eps, HEAD_DIM, BLOCK_D,
            QK_NORM,
        )  # fmt: skip
        if split == active_splits - 1:
            key_row = query_row + (num_kv_heads * GROUP + kv_head) * HEAD_DIM
            slot = tl.load(table + position // BLOCK_SIZE).to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE
            cell = slot * slot_stride + kv_head * HEAD_DIM
            cache_token(
                key_row, key_row + num_kv_heads * HEAD_DIM, key_cache + cell, value_cache + cell, position,
                cos_sin_ptr, k_norm_ptr, eps, HEAD_DIM, BLOCK_D, QK_NORM,
            )  # fmt: skip
            tl.debug_barrier()  # every thread's part is written before any is read below

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
        True,
        NUM_STAGES,
    )
    acc = acc / row_sum[:, None]
    if active_splits == 1:
        tl.store(out_ptr + out_offsets, acc.to(out_ptr.dtype.element_ty), mask=row_mask)
        return

    pair = seq * num_kv_heads + kv_head
    partial_out = partial_ptr + pair.to(tl.int64) * (2 * num_splits * GROUP_ROWS * BLOCK_D)
    partial_lse = partial_out + num_splits * GROUP_ROWS * BLOCK_D
    partial = (split * GROUP_ROWS + rows[:, None]) * BLOCK_D + dims[None, :]
    stored = (rows < GROUP_ROWS)[:, None]
    lse = row_max + tl.log2(row_sum)
    tl.store(partial_out + partial, acc, mask=stored)
    tl.store(partial_lse + partial, tl.zeros_like(acc) + lse[:, None], mask=stored)
    # The last block of this (sequence, head) to arrive merges all splits, in their order: the sum does not depend
    # on who comes last. The barrier puts every thread's stores before thread 0's release.
    tl.debug_barrier()
    if tl.atomic_add(arrived + pair, 1, sem="acq_rel") < active_splits - 1:
        return
    tl.store(arrived + pair, 0)
    merge_splits(
        partial_out,
        partial_lse,
        out_ptr + (seq.to(tl.int64) * num_kv_heads + kv_head) * GROUP * HEAD_DIM,
        active_splits,
        GROUP,
        GROUP_ROWS,
        HEAD_DIM,
        BLOCK_D,
    )


def choose_decode_tiles(head_dim: int, element_size: int, num_pairs: int) -> TileConfig:
    """Tiles that fit a multiprocessor's shared memory and registers; 4-byte elements have no matrix units. num_pairs:
    sequences times KV heads."""
    if element_size > 2 and head_dim > 64:
        return _WIDE_CONFIG
    return _SHALLOW_CONFIG if _is_shallow(num_pairs) and element_size == 2 else DECODE_CONFIG


def _is_shallow(num_pairs: int) -> bool:
    return DECODE_BLOCKS < num_pairs <= _SHALLOW_BLOCKS


def shallow_batch(num_kv_heads: int) -> int:
    """The smallest number of decodes whose tiles are those of two stages; 0 where none is."""
    batch = DECODE_BLOCKS // num_kv_heads + 1
    return batch if _is_shallow(batch * num_kv_heads) else 0


def num_decode_splits(num_decodes: int, num_kv_heads: int, max_seq_len: int, split_tokens: int = 0) -> int:
    """How many pieces a decode's keys are cut into: as many as run at once at small batch, one at large batch."""
    if split_tokens:
        return div_ceil(max_seq_len, split_tokens)
    at_once = DECODE_BLOCKS // (num_decodes * num_kv_heads)
    return max(1, min(at_once, MAX_SPLITS, div_ceil(max_seq_len, DECODE_CONFIG.key_rows)))


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
    rotary: Rotary | None = None,
    pdl: bool = False,
    config: TileConfig | None = None,
) -> None:
    """One query token a sequence: row i of query and out belongs to seq_lens[i]. Writes out in place.

    query [num_tokens, num_heads, head_dim]. rotary: query has the new keys and values too, as the product leaves them,
    [num_decodes, num_heads + 2 * num_kv_heads, head_dim]; they are written to the caches, which have the same dtype.
    """
    num_decodes, (_, block_size, num_kv_heads, head_dim) = seq_lens.shape[0], key_cache.shape
    config = config or choose_decode_tiles(head_dim, key_cache.element_size(), num_decodes * num_kv_heads)
    group = out.shape[1] // num_kv_heads
    group_rows = next_power_of_2(group)
    assert num_decodes * num_kv_heads <= ARRIVAL_COUNTERS
    num_splits = num_splits or num_decode_splits(num_decodes, num_kv_heads, max_seq_len, split_tokens)
    block_d = next_power_of_2(head_dim)
    partial_size = 2 * num_decodes * num_kv_heads * num_splits * group_rows * block_d if num_splits > 1 else 0
    partial = torch.empty(partial_size, dtype=torch.float32, device=query.device)
    pdl = can_launch_early(query, pdl)
    _decode_kernel(
        (num_kv_heads, num_splits, num_decodes),
        query,
        key_cache,
        value_cache,
        out,
        partial,
        arrival_counters(query.device),
        block_tables,
        seq_lens,
        query if rotary is None else rotary.cos_sin,
        query if rotary is None or rotary.q_norm_weight is None else rotary.q_norm_weight,
        query if rotary is None or rotary.k_norm_weight is None else rotary.k_norm_weight,
        0.0 if rotary is None else rotary.eps,
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
        BLOCK_D=block_d,
        BLOCK_M=max(config.query_rows, group_rows),
        TILE=config.key_rows,
        NUM_STAGES=config.num_stages,
        ROPE=rotary is not None,
        QK_NORM=rotary is not None and rotary.q_norm_weight is not None,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        pdl=pdl,
    )
