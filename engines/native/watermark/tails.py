"""Upper tails of the three statistics when there is no mark: P(X >= observed), exact to about 1e-10 of itself.

They are sums of independent terms whose distribution a secret key makes known, so no tail here is a normal
approximation: a verdict at one false positive in a million means that, at any length of text.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Mapping


def binomial_tail(count: int, trials: int, share: float) -> float:
    """P(X >= count) for X ~ Binomial(trials, share), 0 < share < 1."""
    if count <= 0:
        return 1.0
    if count > trials:
        return 0.0
    if count <= trials * share:  # the other side is the short sum
        return 1.0 - binomial_tail(trials - count + 1, trials, 1.0 - share)
    term = math.exp(
        math.lgamma(trials + 1)
        - math.lgamma(count + 1)
        - math.lgamma(trials - count + 1)
        + count * math.log(share)
        + (trials - count) * math.log1p(-share)
    )
    total = 0.0
    odds = share / (1.0 - share)
    for successes in range(count, trials + 1):
        total += term
        term *= (trials - successes) / (successes + 1) * odds
        if term < total * 1e-17:
            break
    return min(total, 1.0)


def exponential_sum_tail(total: float, terms: int) -> float:
    """P(X >= total) for X the sum of `terms` exponentials of mean 1: the number of Poisson(total) events is smaller."""
    if total <= 0.0 or not terms:
        return 1.0
    first = terms - 1 if total > terms else max(int(total) - 1, 0)
    peak = math.exp(first * math.log(total) - total - math.lgamma(first + 1))
    probability, term = 0.0, peak
    for events in range(first, -1, -1):
        probability += term
        term *= events / total
        if term < probability * 1e-17:
            break
    term = peak
    for events in range(first + 1, terms):
        term *= total / events
        probability += term
    return min(probability, 1.0)


def weighted_coins_tail(total: int, coins: Mapping[int, int]) -> float:
    """P(X >= total) for X the sum of weights whose fair coin shows heads. coins: weight -> how many, weights positive.

    With K the logarithm of X's moment generating function, and any theta > 0 (Abate and Whitt 1992):

        P = exp(K(theta) - theta total) / 2pi  *  integral over [-pi, pi] of
            exp(K(theta + it) - K(theta) - it total) / (1 - exp(-(theta + it)))

    taken near the saddle point, where nothing cancels, by a trapezoid sum, which for a periodic function errs only by
    what is `nodes` steps away from `total`. Most of the nodes count for nothing and are skipped.
    """
    largest = sum(weight * count for weight, count in coins.items())
    if total <= 0:
        return 1.0
    if total > largest:
        return 0.0
    if 2 * total <= largest:  # the distribution is symmetric
        return 1.0 - weighted_coins_tail(largest - total + 1, coins)
    deviation = math.sqrt(sum(weight * weight * count for weight, count in coins.items())) / 2
    theta = max(_saddle(total, coins), 2 / deviation)
    log_scale = sum(count * _log_mean_exp(weight * theta) for weight, count in coins.items()) - theta * total
    nodes = math.ceil(min(largest + 40 / theta, max(24 * deviation, (40 - log_scale) / theta))) + 2
    integral, node = 0.0, 0
    while 2 * node <= nodes:
        angle = 2 * math.pi * node / nodes
        weight = _vanishing_by(coins, theta, angle)
        if weight is not None:  # and so does everything as far as pi / weight
            node = max(node + 1, nodes // (2 * weight))
            continue
        value = _integrand(total, coins, theta, angle)
        integral += value if node in (0, nodes - node) else 2 * value
        node += 1
    return min(math.exp(log_scale) * integral / nodes, 1.0)


def _vanishing_by(coins: Mapping[int, int], theta: float, angle: float) -> int | None:
    """The least weight such that it and the smaller ones make the integrand less than e**-45 at `angle`, None if all
    together do not. The size that a weight w contributes falls until pi / w."""
    log_size = 0.0
    for weight in sorted(coins):
        log_size += coins[weight] * math.log(max(_relative_size(weight, theta, angle), 1e-300))
        if log_size < -45:
            return weight
    return None


def _log_mean_exp(exponent: float) -> float:
    """log((1 + e**x) / 2) for x >= 0."""
    return exponent + math.log1p(math.exp(-exponent)) - math.log(2)


def _saddle(total: int, coins: Mapping[int, int]) -> float:
    """The theta at which the tilted mean is `total`, which lies above the mean; by bisection."""
    low, high = 0.0, 40.0
    for _ in range(60):
        theta = (low + high) / 2
        mean = sum(weight * count / (1 + math.exp(-min(weight * theta, 700))) for weight, count in coins.items())
        low, high = (theta, high) if mean < total else (low, theta)
    return low


def _relative_size(weight: int, theta: float, angle: float) -> float:
    """|1 + e**(w (theta + it))| / (1 + e**(w theta))."""
    rest = math.exp(-weight * theta)
    return abs(rest + cmath.exp(1j * weight * angle)) / (rest + 1)


def _integrand(total: int, coins: Mapping[int, int], theta: float, angle: float) -> float:
    """The real part; the imaginary parts of +angle and -angle cancel."""
    log_value = -1j * angle * total
    for weight, count in coins.items():
        rest = math.exp(-weight * theta)
        log_value += count * cmath.log((rest + cmath.exp(1j * weight * angle)) / (rest + 1))
    return (cmath.exp(log_value) / (1 - cmath.exp(-theta - 1j * angle))).real
