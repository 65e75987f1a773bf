"""A captured step's inputs from RowState's tables, and its tokens back into them, each in one launch.

In plain PyTorch they are two dozen launches of a few microseconds, as long as some layers of a small model take. The
twins are `engines.native.row_ops.read_rows` and `store_tokens`.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

import torch
import triton.language as tl
from torch import Tensor

from engines.native.kernels.triton_kernel import is_compiling_ahead, kernel
from engines.native.kernels.triton_launch import div_ceil, release_successor, wait_for_predecessor
from engines.native.row_ops import StepTensors

_TOKENS = 256  # of a sequence, a program
_STORED = 128  # tokens, a program
_BLOCKS = 256  # of a sequence's table, copied at a time
_SEQS = 1024  # counts that are summed at a time


@kernel(
    varying=[
        *("sequences", "input_ids", "positions_out", "slot_mapping", "query_starts", "seq_lens", "last_tokens"),
        *("num_seqs", "num_decodes", "num_tokens"),
    ]
)
def _read_rows_kernel(
    sequences,  # [3 or more, num_seqs] int64
    token_table,  # [rows, token_stride] int32
    block_tables,  # [rows, WIDTH] int32
    input_ids,
    positions_out,
    slot_mapping,
    query_starts,
    seq_lens,
    tables_out,
    last_tokens,
    num_seqs,
    num_decodes,
    num_tokens,
    token_stride,
    scratch_row,
    BLOCK_SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    SEQS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCKS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (num_seqs, cdiv(the most tokens of a sequence, TOKENS))."""
    seq, part = tl.program_id(0), tl.program_id(1)
    release_successor(PDL)
    wait_for_predecessor(PDL)
    row = tl.load(sequences + seq)
    start = tl.load(sequences + num_seqs + seq)
    is_decode = seq < num_decodes
    count = tl.where(is_decode, 1, tl.load(sequences + 2 * num_seqs + seq))
    query_start = tl.minimum(seq, num_decodes).to(tl.int64)
    for first in range(num_decodes, seq, SEQS):
        others = first + tl.arange(0, SEQS)
        query_start += tl.sum(tl.load(sequences + 2 * num_seqs + others, mask=others < seq, other=0), axis=0)
    is_padding = row == scratch_row

    tokens = part * TOKENS + tl.arange(0, TOKENS)
    exists = tokens < count
    positions = tl.where(is_padding, 0, start + tokens)
    token_ids = tl.load(token_table + row * token_stride + positions, mask=exists, other=0)
    blocks = tl.load(block_tables + row * WIDTH + positions // BLOCK_SIZE, mask=exists, other=0)
    slots = blocks.to(tl.int64) * BLOCK_SIZE + positions % BLOCK_SIZE
    tl.store(input_ids + query_start + tokens, token_ids.to(tl.int64), mask=exists)
    tl.store(positions_out + query_start + tokens, positions, mask=exists)
    tl.store(slot_mapping + query_start + tokens, tl.where(is_padding, -1, slots), mask=exists)
    if part > 0:
        return
    tl.store(query_starts + seq, query_start.to(tl.int32))
    if seq == num_seqs - 1:
        tl.store(query_starts + num_seqs, num_tokens)
    tl.store(seq_lens + seq, tl.where(is_padding, 0, start + count).to(tl.int32))
    tl.store(last_tokens + seq, tl.minimum(tl.maximum(query_start + count - 1, 0), num_tokens - 1))
    for first in range(0, WIDTH, BLOCKS):
        columns = first + tl.arange(0, BLOCKS)
        table = tl.load(block_tables + row * WIDTH + columns, mask=columns < WIDTH, other=0)
        tl.store(tables_out + seq.to(tl.int64) * WIDTH + columns, table, mask=columns < WIDTH)


def read_rows(
    sequences: Tensor,
    token_table: Tensor,
    block_tables: Tensor,
    block_size: int,
    num_decodes: int,
    num_tokens: int,
) -> StepTensors:
    """As `row_ops.read_rows`."""
    num_seqs, (num_rows, width), device = sequences.shape[1], block_tables.shape, sequences.device
    # Nothing is written while compiling ahead, and what is not a token id would be looked up all the same.
    empty = torch.zeros if is_compiling_ahead() else torch.empty
    longs = empty((3, num_tokens), dtype=torch.int64, device=device)
    ints = torch.empty(2 * num_seqs + 1, dtype=torch.int32, device=device)
    tables = torch.empty((num_seqs, width), dtype=torch.int32, device=device)
    last_tokens = empty(num_seqs, dtype=torch.int64, device=device)
    input_ids, positions, slot_mapping = longs
    seq_lens, query_starts = ints[:num_seqs], ints[num_seqs:]
    _read_rows_kernel(
        (num_seqs, max(1, div_ceil(num_tokens - num_decodes, _TOKENS))),
        sequences,
        token_table,
        block_tables,
        input_ids,
        positions,
        slot_mapping,
        query_starts,
        seq_lens,
        tables,
        last_tokens,
        num_seqs,
        num_decodes,
        num_tokens,
        token_table.stride(0),
        num_rows - 1,
        BLOCK_SIZE=block_size,
        WIDTH=width,
        SEQS=_SEQS,
        TOKENS=_TOKENS,
        BLOCKS=_BLOCKS,
        num_warps=4,
    )
    return StepTensors(input_ids, positions, slot_mapping, query_starts, seq_lens, tables, last_tokens)


@kernel(varying=["rows", "lengths", "token_ids", "num_stored"])
def _store_tokens_kernel(
    token_table,
    rows,
    lengths,
    token_ids,
    num_stored,
    token_stride,
    STORED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (cdiv(num_stored, STORED),)."""
    at = tl.program_id(0) * STORED + tl.arange(0, STORED)
    release_successor(PDL)
    wait_for_predecessor(PDL)
    exists = at < num_stored
    row = tl.load(rows + at, mask=exists, other=0)
    length = tl.load(lengths + at, mask=exists, other=0)
    token = tl.load(token_ids + at, mask=exists, other=0)
    tl.store(token_table + row * token_stride + length, token.to(tl.int32), mask=exists)


def store_tokens(token_table: Tensor, rows: Tensor, lengths: Tensor, token_ids: Tensor) -> None:
    """As `row_ops.store_tokens`."""
    _store_tokens_kernel(
        (div_ceil(len(rows), _STORED),),
        token_table,
        rows.contiguous(),
        lengths.contiguous(),
        token_ids,
        len(rows),
        token_table.stride(0),
        STORED=_STORED,
        num_warps=4,
    )
