"""The tails are those of the distributions, counted out where that is possible."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import pytest

from engines.native.watermark.detect import layer_weights
from engines.native.watermark.tails import binomial_tail, exponential_sum_tail, weighted_coins_tail


def counted(coins: dict[int, int]) -> dict[int, int]:
    """How many of all outcomes have each sum."""
    ways = Counter({0: 1})
    for weight, count in coins.items():
        for _ in range(count):
            ways += Counter({total + weight: number for total, number in ways.items()})
    return ways


@pytest.mark.parametrize("coins", [{1: 1}, {3: 2, 1: 1}, {10: 4, 9: 3, 1: 7}, dict.fromkeys(range(1, 11), 9)], ids=str)
def test_weighted_coins_tail_is_the_count_of_outcomes(coins: dict[int, int]) -> None:
    ways = counted(coins)
    outcomes = sum(ways.values())
    for total in range(0, max(ways) + 2, max(1, max(ways) // 40)):
        expected = Fraction(sum(number for value, number in ways.items() if value >= total), outcomes)
        assert weighted_coins_tail(total, coins) == pytest.approx(float(expected), rel=1e-10)


def test_many_weighted_coins_are_nearly_normal() -> None:
    coins = {weight: 2000 * layers for weight, layers in Counter(layer_weights(30)).items()}
    mean = sum(weight * count for weight, count in coins.items()) / 2
    deviation = math.sqrt(sum(weight * weight * count for weight, count in coins.items())) / 2
    for z in (-3.0, 0.0, 0.7, 4.0, 8.0):
        tail = weighted_coins_tail(round(mean + z * deviation), coins)
        assert tail == pytest.approx(math.erfc(z / math.sqrt(2)) / 2, rel=0.02)


@pytest.mark.parametrize("share", [0.25, 0.5])
@pytest.mark.parametrize("trials", [0, 1, 7, 60])
def test_binomial_tail_is_the_sum_of_its_terms(trials: int, share: float) -> None:
    exact = [
        math.comb(trials, k) * Fraction(share) ** k * Fraction(1 - share) ** (trials - k) for k in range(trials + 1)
    ]
    for count in range(trials + 2):
        assert binomial_tail(count, trials, share) == pytest.approx(float(sum(exact[count:])), rel=1e-11)


@pytest.mark.parametrize("terms", [1, 2, 10, 300])
def test_exponential_sum_tail_is_that_of_fewer_events(terms: int) -> None:
    for total in (0.1, terms / 2, float(terms), terms + 3 * math.sqrt(terms), 3.0 * terms):
        exact = math.fsum(math.exp(k * math.log(total) - total - math.lgamma(k + 1)) for k in range(terms))
        assert exponential_sum_tail(total, terms) == pytest.approx(exact, rel=1e-9)
