"""Ragged chunked-prefill attention in Triton: chunks of queries over everything their sequences have cached.

A tile of queries holds several tokens times the heads that share a KV head. Grid: (num_kv_heads, query tiles), the
tiles an upper bound known on the host; which sequence a tile belongs to is found on the device.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

import triton.language as tl
from torch import Tensor

from engines.native.kernels.triton_attention_tiles import LOG2_E, TileConfig, attend_tiles
from engines.native.kernels.triton_kernel import kernel
from engines.native.kernels.triton_launch import (
    can_launch_early,
    next_power_of_2,
    release_successor,
    wait_for_predecessor,
)

PREFILL_CONFIG = TileConfig(query_rows=128, key_rows=64, num_warps=8, num_stages=3)


def choose_prefill_tiles(head_dim: int, element_size: int) -> TileConfig:
    """Tiles that fit a multiprocessor's shared memory; 4-byte elements have no matrix units and fill registers too."""
    if element_size > 2:
        return TileConfig(64 if head_dim <= 64 else 32, 32 if head_dim <= 128 else 16, num_warps=8, num_stages=2)
    return PREFILL_CONFIG if head_dim <= 128 else TileConfig(64, 64, num_warps=8, num_stages=2)


@kernel(varying=["block_tables", "seq_lens", "query_start_loc", "num_seqs", "sliding_window", "table_stride"])
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
        acc, row_max, row_sum = attend_tiles(
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
    config: TileConfig | None = None,
) -> None:
    """Ragged chunks of queries; query_start_loc [num_seqs + 1] indexes rows of query and out. Writes out in place.

    num_query_tokens is an upper bound of query_start_loc[-1] - query_start_loc[0], known on the host.
    """
    num_seqs, (_, block_size, num_kv_heads, head_dim) = seq_lens.shape[0], key_cache.shape
    config = config or choose_prefill_tiles(head_dim, key_cache.element_size())
    group = query.shape[1] // num_kv_heads
    group_rows = next_power_of_2(group)
    query_rows = max(config.query_rows, group_rows)
    num_tiles = num_query_tokens // (query_rows // group_rows) + num_seqs
    pdl = can_launch_early(query, pdl)
    _prefill_kernel(
        (num_kv_heads, num_tiles),
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
        BLOCK_D=next_power_of_2(head_dim),
        BLOCK_M=query_rows,
        TILE=config.key_rows,
        NUM_STAGES=config.num_stages,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        pdl=pdl,
    )
