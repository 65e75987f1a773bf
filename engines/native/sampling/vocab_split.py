"""Choosing tokens when each rank has the logits of its own tokens only.

Where no parameter needs the whole distribution, each rank offers its best token and three numbers a row are exchanged
instead of the vocabulary. Elsewhere every rank gets all logits. All ranks end with the same tokens, by comparing the
same numbers, or because rank 0 says so. Knows the group of ranks and the meaning of the draw (torch_core.py), no
requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engines.native.sampling.ops import SamplingOps

if TYPE_CHECKING:
    from engines.native.distributed.group import RankGroup


class VocabSplit:
    """The vocabulary as the ranks of `group` share it: contiguous parts, the last ones smaller."""

    def __init__(self, group: RankGroup, vocab_size: int, ops: SamplingOps) -> None:
        self._group = group
        self._vocab_size = vocab_size
        self._ops = ops
        self._first_token = group.shard.take_rows(vocab_size).start
        self._largest_part = -(-vocab_size // group.shard.world_size)

    def choose(
        self, logits: Tensor, temperature: Tensor | None, seeds: Tensor | None, positions: Tensor | None
    ) -> Tensor:
        """As greedy, or as sample_core without filters where there are temperatures: [B] int64, on every rank.

        logits [B, tokens of this rank] float32, not written to; the others [B], None together.
        """
        offer = self._ops.local_best(logits, temperature, seeds, positions, self._first_token)
        return self._ops.best_of(self._group.gather(offer), temperature)

    def whole(self, logits: Tensor) -> Tensor:
        """[B, tokens of this rank] to [B, vocab_size], the same on every rank."""
        missing = self._largest_part - logits.shape[1]
        if missing:
            logits = torch.nn.functional.pad(logits, (0, missing))
        gathered = self._group.gather(logits).transpose(0, 1).flatten(1)  # [B, ranks * largest part]
        return gathered[:, : self._vocab_size].contiguous()

    def agree(self, token_ids: Tensor) -> None:
        """Rank 0's choice, in place: sums of equal numbers may differ in their last bit between ranks."""
        self._group.agree(token_ids)

    def agree_on(self, numbers: Sequence[float]) -> list[float]:
        """Rank 0's numbers, for what every rank measured."""
        return self._group.agree_on(numbers)
