"""Log-probabilities of sampled tokens, under the model's own distribution: before any bias, penalty or temperature.

Owns the device tensors of a step's log-probabilities and their way to the host. Only rows that asked are computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from engines.native.types import LogprobRow


@dataclass(frozen=True, slots=True)
class Logprobs:
    """n rows of a batch, on the device; what is on the host already says whose they are."""

    at: list[int]  # [n] batch position
    counts: list[int]  # [n] how many alternatives the row asked for, at most k
    token_ids: Tensor  # [n] int64, the sampled tokens
    chosen: Tensor  # [n] float32, their log-probabilities
    top_ids: Tensor  # [n, k] int64
    top: Tensor  # [n, k] float32, descending

    def to_host(self) -> dict[int, LogprobRow]:
        """By batch position; waits for the device."""
        return dict(zip(self.at, logprob_rows(self), strict=True))


def score(distribution: Tensor, token_ids: Tensor, at: list[int], counts: list[int]) -> Logprobs:
    """Log-probabilities of `token_ids` [n] and the max(counts) best, from log-softmaxed logits [n, V]."""
    top, top_ids = distribution.topk(min(max(counts), distribution.shape[1]), dim=1)
    chosen = distribution.gather(1, token_ids[:, None])[:, 0]
    return Logprobs(at, counts, token_ids, chosen, top_ids, top)


def logprob_rows(logprobs: Logprobs) -> list[LogprobRow]:
    """Reads everything back. Equally likely alternatives come by rising id, which topk does not promise."""
    columns = (logprobs.token_ids, logprobs.chosen, logprobs.top_ids, logprobs.top)
    token_ids, chosen, top_ids, top = (column.tolist() for column in columns)
    return [_row(token_ids[i], chosen[i], top_ids[i], top[i], count) for i, count in enumerate(logprobs.counts)]


def _row(token_id: int, chosen: float, ids: Sequence[int], values: Sequence[float], count: int) -> LogprobRow:
    best = sorted(zip(ids, values, strict=True), key=lambda pair: (-pair[1], pair[0]))[:count]
    return LogprobRow(token_id, chosen, tuple(id_ for id_, _ in best), tuple(value for _, value in best))
