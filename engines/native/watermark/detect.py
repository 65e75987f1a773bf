"""Detection: how surely a sequence of tokens carries a mark. Needs its tokens and the key, no model and no prompt.

Each token with a whole context before it is scored by what the key says of it. A (context, token) pair that occurs
again would bring the same score again, and a loop would look like evidence: it is scored once. Where generation skips
repeated contexts, a repeated context is not scored at all. What is left are independent terms, and their sum's tail is
known exactly (tails.py), whatever text it is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from engines.native.types import GREEN_LIST, GREEN_LIST_SELF, GUMBEL, SYNTHID, Watermark
from engines.native.watermark import prf, tails

MAX_TOKENS = 100_000  # of one text: a second or two of hashing


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """`marks[i]` belongs to token i: from 0 (speaks against the mark) to 1 (for it); None where it is not scored.

    statistic: green tokens; or the sum of -log(u), which has mean 1 a token without a mark; or the weighted number of
    ones over tokens and layers. z_score: its distance from the unmarked mean in standard deviations. p_value: the
    probability that unmarked text scores at least as much.
    """

    num_tokens_scored: int
    statistic: float
    z_score: float
    p_value: float
    marks: tuple[float | None, ...]


def detect(token_ids: Sequence[int], watermark: Watermark) -> Detection:
    """Scores tokens that were generated one after the other; watermark says by which scheme and key."""
    return _DETECTORS[watermark.scheme](token_ids, watermark)


def layer_weights(depth: int) -> list[int]:
    """What a one in each layer of a tournament counts: from 10 in the first, which decides most, to 1 in the last."""
    if depth == 1:
        return [10]
    return [round(10 - 9 * layer / (depth - 1)) for layer in range(depth)]


def _detect_green(token_ids: Sequence[int], watermark: Watermark) -> Detection:
    width = watermark.context_width
    marks: list[float | None] = [None] * len(token_ids)
    seen: set[tuple[int, ...]] = set()
    for place in range(width, len(token_ids)):
        context, token_id = tuple(token_ids[place - width : place]), token_ids[place]
        if watermark.scheme == GREEN_LIST_SELF:
            bits, decided_by = prf.self_hash_bits(watermark.key, context, token_id)
            pair = (decided_by, token_id)
        else:
            bits = prf.token_bits(prf.context_key(watermark.key, context), prf.GREEN_DOMAIN, token_id)
            pair = (*context, token_id)
        if pair not in seen:
            seen.add(pair)
            marks[place] = float(bits < watermark.threshold)
    return green_detection(marks, watermark.threshold / 2**32)


def green_detection(marks: Sequence[float | None], share: float) -> Detection:
    """From each token's colour, 1 for green. share: of the vocabulary that is green."""
    colours = [mark for mark in marks if mark is not None]
    green, scored = int(sum(colours)), len(colours)
    deviation = math.sqrt(scored * share * (1 - share))
    return Detection(
        num_tokens_scored=scored,
        statistic=float(green),
        z_score=(green - scored * share) / deviation if scored else 0.0,
        p_value=tails.binomial_tail(green, scored, share),
        marks=tuple(marks),
    )


def _detect_gumbel(token_ids: Sequence[int], watermark: Watermark) -> Detection:
    marks: list[float | None] = [None] * len(token_ids)
    total, scored = 0.0, 0
    for place, context in _fresh_contexts(token_ids, watermark.context_width):
        bits = prf.token_bits(prf.context_key(watermark.key, context), prf.GUMBEL_DOMAIN, token_ids[place])
        uniform = (bits + 0.5) / 2**32  # near 0 for the token that the noise lets win
        marks[place] = 1.0 - uniform
        total -= math.log(uniform)
        scored += 1
    return Detection(
        num_tokens_scored=scored,
        statistic=total,
        z_score=(total - scored) / math.sqrt(scored) if scored else 0.0,
        p_value=tails.exponential_sum_tail(total, scored),
        marks=tuple(marks),
    )


def _detect_synthid(token_ids: Sequence[int], watermark: Watermark) -> Detection:
    weights = layer_weights(watermark.depth)
    marks: list[float | None] = [None] * len(token_ids)
    total, scored = 0, 0
    for place, context in _fresh_contexts(token_ids, watermark.context_width):
        bits = prf.token_bits(prf.context_key(watermark.key, context), prf.SYNTHID_DOMAIN, token_ids[place])
        score = sum(weight for layer, weight in enumerate(weights) if bits >> layer & 1)
        marks[place] = score / sum(weights)
        total += score
        scored += 1
    deviation = math.sqrt(scored * sum(weight * weight for weight in weights)) / 2
    coins = {weight: layers * scored for weight, layers in Counter(weights).items()}
    return Detection(
        num_tokens_scored=scored,
        statistic=float(total),
        z_score=(total - scored * sum(weights) / 2) / deviation if scored else 0.0,
        p_value=tails.weighted_coins_tail(total, coins) if scored else 1.0,
        marks=tuple(marks),
    )


def _fresh_contexts(token_ids: Sequence[int], width: int) -> list[tuple[int, tuple[int, ...]]]:
    """(place, the `width` tokens before it) of every token whose context has not stood before any earlier token."""
    fresh: dict[tuple[int, ...], int] = {}
    for place in range(width, len(token_ids)):
        fresh.setdefault(tuple(token_ids[place - width : place]), place)
    return [(place, context) for context, place in fresh.items()]


_DETECTORS = {
    GREEN_LIST: _detect_green,
    GREEN_LIST_SELF: _detect_green,
    GUMBEL: _detect_gumbel,
    SYNTHID: _detect_synthid,
}
