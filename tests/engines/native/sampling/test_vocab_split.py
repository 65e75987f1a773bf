"""Comparing the best tokens of a vocabulary's parts gives the token that the whole vocabulary gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engines.native.sampling.torch_core import best_of, greedy, local_best, sample_core

ROWS, VOCAB = 40, 997


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(2)) * 4


def parts(num_parts: int) -> list[slice]:
    share = -(-VOCAB // num_parts)
    return [slice(part * share, min((part + 1) * share, VOCAB)) for part in range(num_parts)]


@pytest.mark.parametrize("num_parts", [1, 2, 5])
def test_greedy_rows_and_drawn_rows(logits: Tensor, num_parts: int) -> None:
    temperature = torch.tensor([0.0, 0.5, 1.0, 2.0, 1e-3]).repeat(ROWS // 5)
    seeds, positions = torch.arange(ROWS) * 10**15, torch.arange(ROWS) + 7
    whole = sample_core(logits, temperature, None, None, None, seeds, positions)
    offers = [local_best(logits[:, part], temperature, seeds, positions, part.start) for part in parts(num_parts)]
    assert torch.equal(best_of(torch.stack(offers), temperature), whole)
    assert torch.equal(whole[temperature == 0], greedy(logits)[temperature == 0])
    greedy_offers = [local_best(logits[:, part], None, None, None, part.start) for part in parts(num_parts)]
    assert torch.equal(best_of(torch.stack(greedy_offers), None), greedy(logits))


def test_of_equal_logits_in_several_parts_the_lowest_token_wins() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, [900, 300, 700]] = 5.0
    offers = [local_best(logits[:, part], None, None, None, part.start) for part in parts(3)]
    assert best_of(torch.stack(offers), None).tolist() == [300]


def test_a_part_without_a_possible_token_offers_none_that_wins() -> None:
    logits = torch.full((2, VOCAB), -torch.inf)
    logits[:, 950] = -3.0
    temperature, keys = torch.tensor([0.0, 0.8]), torch.arange(2)
    offers = [local_best(logits[:, part], temperature, keys, keys, part.start) for part in parts(2)]
    assert best_of(torch.stack(offers), temperature).tolist() == [950, 950]
