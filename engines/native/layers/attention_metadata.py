"""What attention needs to know about one ragged batch, besides the tensors of a layer.

Owns the layout's description only. It does not know who built the batch or which kernel reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Where each sequence's queries and cached keys and values lie, the same for every layer of a step.

    The tokens of all sequences are concatenated. Sequences that decode (exactly one query token) come first, prefill
    chunks after them. Query token i of a sequence sits at position `seq_len - query_len + i`.
    """

    query_start_loc: Tensor  # [num_seqs + 1] int32: prefix sums of the query lengths, first element 0
    seq_lens: Tensor  # [num_seqs] int32: tokens in the KV cache after this step (context and query)
    block_tables: Tensor  # [num_seqs, max_blocks] int32: cache blocks in order; past a sequence's end: ignored
    slot_mapping: Tensor  # [num_tokens] int64: slot (block_id * block_size + offset) of each new token, -1 = padding
    num_decodes: int  # leading sequences with exactly one query token
    max_query_len: int  # upper bound of the query lengths
    max_seq_len: int  # upper bound of seq_lens

    def of_last_tokens(self, at: Tensor) -> LastTokens:
        """at [num_seqs] int64: the index among the tokens of each sequence's last."""
        num_seqs = at.shape[0]
        one_each = replace(
            self,
            query_start_loc=torch.arange(num_seqs + 1, dtype=torch.int32, device=at.device),
            slot_mapping=self.slot_mapping[at],
            num_decodes=num_seqs,
            max_query_len=1,
        )
        return LastTokens(at, one_each)


@dataclass(frozen=True, slots=True)
class LastTokens:
    """Each sequence's last token. All that a step needs of a model's last layer, but for the keys and values there, is
    what comes of these."""

    at: Tensor  # [num_seqs] int64, among the step's tokens
    metadata: AttentionMetadata  # with these as the only queries
