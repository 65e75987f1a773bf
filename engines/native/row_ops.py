"""What a step of fixed size reads from RowState's tables, and writes there: meaning in plain PyTorch, and which
implementation a device uses.

Knows the layout of a batch (decodes first, then chunks end to end, see AttentionMetadata); no model, no plan, no graph.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class StepTensors(NamedTuple):
    """S sequences, of which the first decode, with T tokens in all."""

    input_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slot_mapping: Tensor  # [T] int64, -1 = padding
    query_starts: Tensor  # [S + 1] int32: where each sequence's tokens begin, and T
    seq_lens: Tensor  # [S] int32, 0 = padding
    block_tables: Tensor  # [S, max_blocks] int32
    last_tokens: Tensor  # [S] int64: index among the T of each sequence's last


class ReadRows(Protocol):
    def __call__(
        self,
        sequences: Tensor,
        token_table: Tensor,
        block_tables: Tensor,
        block_size: int,
        num_decodes: int,
        num_tokens: int,
    ) -> StepTensors: ...


class StoreTokens(Protocol):
    def __call__(self, token_table: Tensor, rows: Tensor, lengths: Tensor, token_ids: Tensor) -> None: ...


def read_rows(
    sequences: Tensor,
    token_table: Tensor,
    block_tables: Tensor,
    block_size: int,
    num_decodes: int,
    num_tokens: int,
) -> StepTensors:
    """The step's tensors, from three numbers a sequence and the tables, without a word from the host.

    sequences [3 or more, S] int64: rows, first positions, token counts. The first num_decodes have one token each
    whatever their counts say; the others' counts sum to num_tokens - num_decodes. The tables' last row is scratch:
    sequences there are padding, whose tokens have position 0, no slot and length 0.
    """
    rows, starts, counts = sequences[:3]
    scratch_row = token_table.shape[0] - 1
    at = torch.arange(num_tokens, device=rows.device)
    ends = num_decodes + counts[num_decodes:].cumsum(0)
    sequence_of = torch.cat((at[:num_decodes], num_decodes + torch.searchsorted(ends, at[num_decodes:], right=True)))
    query_starts = torch.cat((at[:num_decodes], ends - counts[num_decodes:], ends.new_full((1,), num_tokens)))
    is_padding = rows == scratch_row
    pads = is_padding[sequence_of]
    positions = ((starts - query_starts[:-1])[sequence_of] + at).masked_fill(pads, 0)
    token_rows = rows[sequence_of]
    slots = block_tables[token_rows, positions // block_size] * block_size + positions % block_size
    counts = torch.cat((torch.ones_like(counts[:num_decodes]), counts[num_decodes:]))
    return StepTensors(
        input_ids=token_table[token_rows, positions].long(),
        positions=positions,
        slot_mapping=slots.long().masked_fill(pads, -1),
        query_starts=query_starts.int(),
        seq_lens=(starts + counts).masked_fill(is_padding, 0).int(),
        block_tables=block_tables[rows],
        last_tokens=(query_starts[:-1] + counts - 1).clamp(0, num_tokens - 1),
    )


def store_tokens(token_table: Tensor, rows: Tensor, lengths: Tensor, token_ids: Tensor) -> None:
    """token_table[rows, lengths] = token_ids; rows, lengths and token_ids [n] int64. Places named twice take either."""
    token_table[rows, lengths] = token_ids.int()


@dataclass(frozen=True, slots=True)
class RowOps:
    """The functions above in one implementation."""

    read_rows: ReadRows = read_rows
    store_tokens: StoreTokens = store_tokens


def row_ops(device: torch.device) -> RowOps:
    """The fastest implementation for `device`; kernels are imported only where they serve."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return RowOps()
    from engines.native.kernels import triton_rows

    return RowOps(triton_rows.read_rows, triton_rows.store_tokens)
