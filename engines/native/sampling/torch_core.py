"""The sampler's core in plain PyTorch, on any device: the meaning that kernels/cpu_sampler.py and a CUDA kernel keep.

It sorts, so it is the clear version and not the fast one. The order of the passes and the rules for ties are in
sampler.py; which implementation a device uses is in ops.py.

Masses are summed in float64: the grouping of a float32 sum depends on the batch's shape, and a token at the edge of
top-p would then come and go with the company its request has.
"""

import torch
from torch import Tensor

from engines.native.sampling.noise import gumbel_noise


def greedy(logits: Tensor) -> Tensor:
    """logits [B, V] float32 -> [B] int64: the largest logit of each row, the lowest token id among equals."""
    return logits.argmax(dim=1)


def sample_core(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """One token per row: temperature, min-p, top-k, top-p, then the Gumbel draw. Returns token ids [B] int64.

    logits      [B, V] float32, finite or -inf, not written to; a row that is -inf throughout yields some valid id
    temperature [B] float32, 0 = greedy (the row's other parameters are then ignored)
    top_k       [B] int64, <= 0 or >= V = off           | None for one of these three: off in every row,
    top_p       [B] float32, >= 1 = off; keeps one at 0 | known to the host without asking the device
    min_p       [B] float32, <= 0 = off                 |
    seeds, positions [B] int64: key the noise of noise.py
    """
    greedy_rows = (temperature == 0)[:, None]
    scores = scaled(logits, torch.where(greedy_rows[:, 0], 1.0, temperature))
    if min_p is not None:
        scores = scores.masked_fill(scores < min_p.log()[:, None], -torch.inf)
    token_ids = torch.arange(logits.shape[1], device=logits.device)
    if top_k is not None or top_p is not None:
        scores, token_ids = scores.sort(dim=1, descending=True, stable=True)
        scores = scores.masked_fill(~kept_prefix(scores, top_k, top_p), -torch.inf)
    noise = gumbel_noise(seeds[:, None], positions[:, None], token_ids)
    winners = scores.add_(noise.masked_fill_(greedy_rows, 0.0)).argmax(dim=1, keepdim=True)
    return winners[:, 0] if token_ids.dim() == 1 else token_ids.gather(1, winners)[:, 0]


def local_best(
    logits: Tensor, temperature: Tensor | None, seeds: Tensor | None, positions: Tensor | None, first: int
) -> Tensor:
    """What sample_core without filters compares, for tokens [first, first + logits.shape[1]) of the vocabulary.

    The other arguments are sample_core's; without them every row is greedy. Returns an offer, [3, B] int32: the bits of
    the part's largest logit, the bits of the best token's score, which is (logit - that largest) / temperature + noise,
    and the token.
    """
    peak, at = logits.max(dim=1)
    score = torch.zeros_like(peak)
    if temperature is not None and seeds is not None and positions is not None:
        greedy_rows = (temperature == 0)[:, None]
        scores = scaled(logits, torch.where(greedy_rows[:, 0], 1.0, temperature))
        token_ids = torch.arange(first, first + logits.shape[1], device=logits.device)
        noise = gumbel_noise(seeds[:, None], positions[:, None], token_ids)
        score, at = scores.add_(noise.masked_fill_(greedy_rows, 0.0)).max(dim=1)
    return torch.stack((peak.view(torch.int32), score.view(torch.int32), (at + first).int()))


def best_of(offers: Tensor, temperature: Tensor | None) -> Tensor:
    """The best token of every row, [B] int64, from the offers [parts, 3, B] of a vocabulary's parts, in their order."""
    peaks, scores = offers[:, :2].view(torch.float32).unbind(1)
    below = peaks - peaks.amax(dim=0).clamp_(min=torch.finfo(torch.float32).min)
    if temperature is not None:
        below = below / torch.where(temperature == 0, 1.0, temperature)
    winners = (scores + below).argmax(dim=0, keepdim=True)  # of equals the first part: the lowest token ids
    return offers[:, 2].gather(0, winners)[0].long()


_ROWS_AT_ONCE = 32  # rows that are sorted at a time: sorting a batch of 512 rows would take gigabytes


def mask_typical(logits: Tensor, at: Tensor, temperature: Tensor, min_p: Tensor, typical_p: Tensor) -> None:
    """Locally typical sampling (arXiv 2202.00666): sets to -inf, in place, what is not typical.

    Keeps the smallest set of tokens whose information content -log p is nearest to the distribution's entropy and
    whose mass reaches typical_p, of the distribution after temperature and min-p (which it applies as well).

    logits [B, V] float32; at [n] int64, the rows to work on; temperature (> 0), min_p, typical_p [n] float32.
    """
    for part in zip(*(column.split(_ROWS_AT_ONCE) for column in (at, temperature, min_p, typical_p)), strict=True):
        _mask_typical(logits, *part)


def _mask_typical(logits: Tensor, at: Tensor, temperature: Tensor, min_p: Tensor, typical_p: Tensor) -> None:
    scores = scaled(logits[at], temperature)
    scores = scores.masked_fill_(scores < min_p.log()[:, None], -torch.inf)
    probs = scores.double().softmax(dim=1)
    depths = -scores
    # -log p - entropy = depth - mean depth
    mean_depth = (probs * depths.masked_fill(probs == 0, 0.0)).sum(dim=1, keepdim=True)
    order = (depths - mean_depth).abs().float().argsort(dim=1, stable=True)
    probs = probs.gather(1, order)
    kept_in_order = _reaches_first(probs, typical_p)
    kept = torch.empty_like(kept_in_order).scatter_(1, order, kept_in_order)
    logits[at] = logits[at].masked_fill(~kept | scores.isneginf(), -torch.inf)


def mask_filtered(logits: Tensor, at: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> None:
    """Sets to -inf, in place, what min-p, top-k and top-p of sample_core would not keep.

    logits [B, V] float32; at [n] int64, the rows to work on; temperature (> 0), top_k, top_p, min_p [n].
    """
    columns = (at, temperature, top_k, top_p, min_p)
    for part in zip(*(column.split(_ROWS_AT_ONCE) for column in columns), strict=True):
        _mask_filtered(logits, *part)


def _mask_filtered(
    logits: Tensor, at: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> None:
    scores = scaled(logits[at], temperature)
    scores = scores.masked_fill_(scores < min_p.log()[:, None], -torch.inf)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    kept_in_order = kept_prefix(scores, top_k, top_p) & ~scores.isneginf()
    kept = torch.empty_like(kept_in_order).scatter_(1, order, kept_in_order)
    logits[at] = logits[at].masked_fill(~kept, -torch.inf)


def mask_tokens(logits: Tensor, at: Tensor, bits: Tensor) -> None:
    """Forbids, in place, the tokens of rows `at` whose bit is not set.

    An allowed token that an earlier pass has banned gets the lowest finite value in use instead: so a row always has a
    token to take, and takes that one only where there is no other.

    logits [B, V], any floating type; at [n] int64; bits [n, ceil(V / 32)] int32, token t at bit t % 32 of word t // 32.
    """
    shifts = torch.arange(32, dtype=torch.int32, device=bits.device)
    allowed = ((bits[:, :, None] >> shifts) & 1).flatten(1)[:, : logits.shape[1]].bool()
    logits[at] = logits[at].clamp(min=banned_floor(logits.dtype)).masked_fill(~allowed, -torch.inf)


def banned_floor(dtype: torch.dtype) -> float:
    """Far below every logit, and finite in `dtype` even after division by the smallest temperature."""
    return max(-1e30, torch.finfo(dtype).min)


def scaled(logits: Tensor, temperature: Tensor) -> Tensor:
    """(logits - max) / temperature: at most 0, so that a small temperature cannot overflow to +inf."""
    return (logits - logits.amax(dim=1, keepdim=True).clamp_(min=torch.finfo(torch.float32).min)) / temperature[:, None]


def kept_prefix(scores: Tensor, top_k: Tensor | None, top_p: Tensor | None) -> Tensor:
    """scores [B, V], descending -> [B, V] bool: the prefix that top-k, then top-p of what top-k left, keep."""
    kept = torch.ones_like(scores, dtype=torch.bool)
    if top_k is not None:
        ranks = torch.arange(scores.shape[1], device=scores.device)
        kept = ranks < torch.where(top_k > 0, top_k, scores.shape[1])[:, None]
    if top_p is not None:
        probs = scores.double().exp().masked_fill_(~kept, 0.0)
        kept = kept & _reaches_first(probs, top_p)
    return kept


def _reaches_first(weights: Tensor, share: Tensor) -> Tensor:
    """weights [n, V] float64 in the order of choice -> bool: the shortest prefix with `share` [n] of the total."""
    before = weights.cumsum(dim=1)
    target = (share.double() * before[:, -1])[:, None]
    before = before.roll(1, dims=1)
    before[:, 0] = -1.0  # the first is kept even at share 0
    return (before < target) | (share >= 1)[:, None]
