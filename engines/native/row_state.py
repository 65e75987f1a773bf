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
from engines.native.row_ops import RowOps, StepTensors, row_ops
from engines.native.types import BatchPlan


@dataclass(frozen=True, slots=True)
class ModelInput:
    """One step's tensors, on the device."""

    input_ids: Tensor  # [num_tokens] int64
    positions: Tensor  # [num_tokens] int64
    metadata: AttentionMetadata
    last_tokens: Tensor  # [num_seqs] int64: index among num_tokens of each sequence's last token
    sampled_places: Tensor  # [num_sampled] int64: of the sequences that sample, among num_seqs
    sampled_rows: Tensor  # [num_sampled] int64
    sampled_lengths: Tensor  # [num_sampled] int64: tokens known before sampling, which is the new token's position


class RowState:
    """Token ids [max_rows + 1, max_model_len + 1] int32 and block tables [max_rows + 1, max_blocks] int32.

    The last row is scratch: padding of a fixed-size batch points there, and nobody reads it.
    """

    def __init__(
        self, max_rows: int, max_model_len: int, block_size: int, device: torch.device, ops: RowOps | None = None
    ) -> None:
        self.device = device
        self._ops = ops or row_ops(device)
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
        sequences = self.to_device([plan.rows, plan.starts, plan.num_tokens])
        step = self.read(sequences, plan.num_decodes, ends[-1])
        sampled = [i for i, samples in enumerate(plan.samples) if samples]
        sampled_places, sampled_rows, sampled_lengths = self.to_device(
            [sampled, [plan.rows[i] for i in sampled], [lengths[i] for i in sampled]]
        )
        return ModelInput(
            input_ids=step.input_ids,
            positions=step.positions,
            metadata=metadata_of(step, len(plan.rows), plan.num_decodes, max(plan.num_tokens), max(lengths)),
            last_tokens=step.last_tokens,
            sampled_places=sampled_places,
            sampled_rows=sampled_rows,
            sampled_lengths=sampled_lengths,
        )

    def read(self, sequences: Tensor, num_decodes: int, num_tokens: int) -> StepTensors:
        """`row_ops.read_rows` of these tables."""
        return self._ops.read_rows(
            sequences, self.token_table, self.block_tables, self.block_size, num_decodes, num_tokens
        )

    def store(self, rows: Tensor, lengths: Tensor, token_ids: Tensor) -> None:
        """Write sampled tokens where the next step reads its input."""
        self._ops.store_tokens(self.token_table, rows, lengths, token_ids)

    def to_device(self, numbers: Sequence[int] | Sequence[Sequence[int]] | np.ndarray) -> Tensor:
        """Host ints as one int64 tensor, in one copy that does not wait for the device."""
        host = torch.from_numpy(np.asarray(numbers, dtype=np.int64))
        if self.device.type == "cuda":
            return host.pin_memory().to(self.device, non_blocking=True)
        return host


def metadata_of(
    step: StepTensors, num_seqs: int, num_decodes: int, max_query_len: int, max_seq_len: int
) -> AttentionMetadata:
    """Of a step's first num_seqs sequences; what comes behind them is padding."""
    return AttentionMetadata(
        query_start_loc=step.query_starts[: num_seqs + 1],
        seq_lens=step.seq_lens[:num_seqs],
        block_tables=step.block_tables[:num_seqs],
        slot_mapping=step.slot_mapping,
        num_decodes=num_decodes,
        max_query_len=max_query_len,
        max_seq_len=max_seq_len,
    )
