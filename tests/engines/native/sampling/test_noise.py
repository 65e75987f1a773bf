"""The noise is the function its docstring defines, and it behaves as Gumbel noise should."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engines.native.sampling.noise import gumbel_noise, random_bits

WORD = 0xFFFFFFFF


def mix(value: int) -> int:
    value ^= value >> 16
    value = value * 0x85EBCA6B & WORD
    value ^= value >> 13
    value = value * 0xC2B2AE35 & WORD
    return value ^ value >> 16


def key(seed: int, position: int, init: int) -> int:
    value = mix(init ^ seed & WORD)
    value = mix(value * 5 + (seed >> 32 & WORD) & WORD)
    return mix(value * 5 + (position & WORD) & WORD)


def bits_in_plain_integers(seed: int, position: int, token: int) -> int:
    a, b = key(seed, position, 0x243F6A88), key(seed, position, 0x85A308D3)
    return mix(mix(token * 0x9E3779B1 & WORD ^ a) ^ b)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
def test_bits_equal_the_documented_hash(seed: int, position: int, token: int) -> None:
    got = random_bits(torch.tensor([seed]), torch.tensor([position]), torch.tensor([token]))
    assert got.item() == bits_in_plain_integers(seed, position, token)


def test_bits_are_pinned() -> None:
    """A change here changes the tokens of every seeded request: that is a release note, not a refactoring."""
    got = random_bits(torch.tensor([0, 1, -1]), torch.tensor([0, 7, 123456]), torch.tensor([0, 42, 151935]))
    assert got.tolist() == PINNED


PINNED = [1237013381, 285489639, 3929771319]


def test_noise_of_a_row_does_not_depend_on_the_batch() -> None:
    seeds, positions, tokens = torch.arange(5)[:, None], torch.arange(100, 105)[:, None], torch.arange(997)
    together = gumbel_noise(seeds, positions, tokens)
    alone = torch.stack([gumbel_noise(seeds[i], positions[i], tokens) for i in range(5)])
    assert together.dtype == torch.float32
    assert torch.equal(together, alone)
    assert torch.equal(together[:, 500:510], gumbel_noise(seeds, positions, tokens[500:510]))


def test_noise_has_the_moments_of_a_gumbel() -> None:
    noise = gumbel_noise(torch.tensor([[11]]), torch.arange(20)[:, None], torch.arange(50_000)).double()
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772157, abs=5e-3)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=5e-3)


@pytest.mark.parametrize("axis", ["seed", "position", "token", "high half of seed"])
def test_neighbouring_keys_are_uncorrelated(axis: str) -> None:
    count = 200_000
    zero, steps = torch.zeros(1, dtype=torch.int64), torch.arange(count + 1)
    arguments = {
        "seed": (steps, zero, zero),
        "position": (zero, steps, zero),
        "token": (zero, zero, steps),
        "high half of seed": (steps << 32, zero, zero),
    }[axis]
    uniform = random_bits(*arguments).double() / 2**32 - 0.5
    correlation = (uniform[:-1] * uniform[1:]).mean() * 12
    assert abs(correlation.item()) < 5 / math.sqrt(count)


def test_each_bit_is_fair() -> None:
    words = random_bits(torch.tensor([3]), torch.arange(300)[:, None], torch.arange(1000))
    shares = torch.stack([(words >> bit & 1).double().mean() for bit in range(32)])
    assert (shares - 0.5).abs().max().item() < 5 * 0.5 / math.sqrt(words.numel())


def test_argmax_draws_from_the_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    draws = 100_000
    noise = gumbel_noise(torch.tensor([5]), torch.arange(draws)[:, None], torch.arange(4))
    shares = torch.bincount((logits + noise).argmax(dim=1), minlength=4) / draws
    torch.testing.assert_close(shares, logits.softmax(0), atol=5e-3, rtol=0)


def test_extreme_bits_stay_finite() -> None:
    """The largest and smallest word, put through the documented map, give the documented range."""
    for bits, expected in ((0, 22.876), (WORD, -2.811)):
        uniform = torch.tensor([float(bits)]).add(0.5).mul(2.0**-32).clamp(max=1 - 2.0**-24)
        assert (-(-(-uniform).log1p()).log()).item() == pytest.approx(expected, abs=1e-2)
