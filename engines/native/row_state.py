"""The runner's device-resident state: one row per running sequence, fed by deltas: a step sends only what changed.

Token ids and block tables live on the device. The host knows every position in advance, but not the tokens that steps
in flight will sample: those are written into the table by the device itself, and read from there by the next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from engines.native.layers.attention_metadata import AttentionMetadata
from engines.native.types import BatchPlan


@dataclass(frozen=True, slots=True)
class ModelInput:
    """One step's tensors, on the device."""

    input_ids: Tensor  # [num_tokens] int64
    positions: Tensor  # [num_tokens] int64
    metadata: AttentionMetadata
    sampled_tokens: Tensor  # [num_sampled] int64: index among num_tokens of each sampling sequence's last token
    sampled_rows: Tensor  # [num_sampled] int64
    sampled_lengths: Tensor  # [num_sampled] int64: tokens known before sampling, which is the new token's position


class RowState:
    """Token ids [max_rows + 1, max_model_len + 1] int32 and block tables [max_rows + 1, max_blocks] int32.

    The last row is scratch: padding of a fixed-size batch points there, and nobody reads it.
    """

    def __init__(self, max_rows: int, max_model_len: int, block_size: int, device: torch.device) -> None:
        self.device = device
        self.block_size = block_size
        self.max_model_len = max_model_len
        self.scratch_row = max_rows
        max_blocks = -(-max_model_len // block_size)
        # One column more than the context: the token sampled at the very end has no KV, but it is stored.
        self.token_table = torch.zeros((max_rows + 1, max_model_len + 1), dtype=torch.int32, device=device)
        self.block_tables = torch.zeros((max_rows + 1, max_blocks), dtype=torch.int32, device=device)

    def apply(self, plan: BatchPlan) -> None:
        """Take in who was admitted and which blocks were added."""
        for admission in plan.admissions:
            self.token_table[admission.row, : len(admission.token_ids)] = self.to_device(admission.token_ids).int()
        if plan.block_appends:
            rows, positions, blocks = self.to_device(plan.block_appends).unbind(1)
            self.block_tables[rows, positions] = blocks.int()

    def prepare(self, plan: BatchPlan) -> ModelInput:
        """The step's inputs, from the plan's few numbers per sequence and what is on the device."""
        lengths = [start + count for start, count in zip(plan.starts, plan.num_tokens, strict=True)]
        ends = list(accumulate(plan.num_tokens))
        total = ends[-1]
        rows, starts, counts, query_starts, seq_lens = self.to_device(
            [plan.rows, plan.starts, plan.num_tokens, [0, *ends[:-1]], lengths]
        )
        token_rows = torch.repeat_interleave(rows, counts, output_size=total)
        shift = torch.repeat_interleave(starts - query_starts, counts, output_size=total)
        positions = torch.arange(total, device=self.device) + shift
        blocks = self.block_tables[token_rows, positions // self.block_size]
        max_seq_len = max(lengths)
        sampled = [i for i, samples in enumerate(plan.samples) if samples]
        sampled_tokens, sampled_rows, sampled_lengths = self.to_device(
            [[ends[i] - 1 for i in sampled], [plan.rows[i] for i in sampled], [lengths[i] for i in sampled]]
        )
        return ModelInput(
            input_ids=self.token_table[token_rows, positions].long(),
            positions=positions,
            metadata=AttentionMetadata(
                query_start_loc=torch.cat((query_starts, query_starts.new_full((1,), total))).int(),
                seq_lens=seq_lens.int(),
                block_tables=self.block_tables[rows, : -(-max_seq_len // self.block_size)],
                slot_mapping=blocks * self.block_size + positions % self.block_size,
                num_decodes=plan.num_decodes,
                max_query_len=max(plan.num_tokens),
                max_seq_len=max_seq_len,
            ),
            sampled_tokens=sampled_tokens,
            sampled_rows=sampled_rows,
            sampled_lengths=sampled_lengths,
        )

    def store(self, rows: Tensor, lengths: Tensor, token_ids: Tensor) -> None:
        """Write sampled tokens where the next step reads its input."""
        self.token_table[rows, lengths] = token_ids.int()

    def to_device(self, numbers: Sequence[int] | Sequence[Sequence[int]] | np.ndarray) -> Tensor:
        """Host ints as one int64 tensor, in one copy that does not wait for the device."""
        host = torch.from_numpy(np.asarray(numbers, dtype=np.int64))
        if self.device.type == "cuda":
            return host.pin_memory().to(self.device, non_blocking=True)
        return host
