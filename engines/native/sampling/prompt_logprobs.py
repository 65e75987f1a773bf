"""Log-probabilities of a prompt's own tokens, from the logits that a prefill chunk computed anyway."""

from torch import Tensor

from engines.native.sampling.logprobs import logprob_rows, score
from engines.native.types import LogprobRow

CHUNK_ELEMENTS = 2**23  # logits that are turned to float32 log-probabilities at a time: 32 MiB


def prompt_logprobs(logits: Tensor, target_ids: Tensor, num_top: int) -> list[LogprobRow]:
    """One row per prompt token: its log-probability and the `num_top` most likely tokens in its place.

    logits [T, V] of any float dtype, not written to: entry i is the model's output before token target_ids[i].
    target_ids [T] int64. Waits for the device once per chunk of tokens.
    """
    step = max(CHUNK_ELEMENTS // logits.shape[1], 1)
    rows: list[LogprobRow] = []
    for start in range(0, logits.shape[0], step):
        targets = target_ids[start : start + step]
        distribution = logits[start : start + step].float().log_softmax(dim=1)
        at, counts = list(range(len(targets))), [num_top] * len(targets)
        rows += logprob_rows(score(distribution, targets, at, counts))
    return rows
