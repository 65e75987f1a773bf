"""A request's tokens depend on the request alone, and parameters act in the documented order."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engines.native.sampling.ops import TORCH_OPS, SamplingOps, sampling_ops
from engines.native.sampling.sampler import Sampler
from engines.native.sampling.state import SamplingState
from engines.native.types import TokenParams
from tests.engines.native.sampling.batches import CPU, Known, read_back, sample_batch

VOCAB = 300

token_ids = st.integers(0, VOCAB - 1)
params = st.builds(
    TokenParams,
    max_tokens=st.just(50),
    min_tokens=st.integers(0, 4),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([-1, 0, 1, 20, 1000]),
    top_p=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.1]),
    typical_p=st.sampled_from([0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.2]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    seed=st.integers(-(2**63), 2**63 - 1),
    stop_token_ids=st.lists(token_ids, max_size=2).map(tuple),
    logit_bias=st.lists(st.tuples(token_ids, st.floats(-5, 5, width=32)), max_size=3).map(tuple),
    bad_words=st.lists(st.lists(token_ids, max_size=2).map(tuple), max_size=3).map(tuple),
    allowed_token_ids=st.lists(token_ids, max_size=3).map(tuple),
    logprobs=st.integers(-1, 3),
)
sequences = st.lists(
    st.builds(Known, params, st.lists(token_ids, min_size=1, max_size=8), st.lists(token_ids, max_size=8)),
    min_size=1,
    max_size=6,
)


def logits_for(sequence: Known) -> Tensor:
    generator = torch.Generator().manual_seed(sum(sequence.tokens) + len(sequence.tokens))
    return torch.randn(VOCAB, generator=generator) * 2


@pytest.mark.parametrize("which", ["torch", "numba"])
@settings(max_examples=60, deadline=None)
@given(batch=sequences, order_seed=st.integers(0, 1000))
def test_tokens_do_not_depend_on_company_or_place(which: str, batch: list[Known], order_seed: int) -> None:
    ops = TORCH_OPS if which == "torch" else sampling_ops(CPU)
    rows = random.Random(order_seed).sample(range(12), len(batch))
    together = read_back(sample_batch(ops, torch.stack([logits_for(s) for s in batch]), batch, rows))
    for i, sequence in enumerate(batch):
        alone = read_back(sample_batch(ops, logits_for(sequence)[None], [sequence]))
        assert alone.token_ids == [together.token_ids[i]]
        assert (0 in alone.logprobs) == (i in together.logprobs)
        if i in together.logprobs:
            assert alone.logprobs[0].top_ids == together.logprobs[i].top_ids
            assert alone.logprobs[0].logprob == pytest.approx(together.logprobs[i].logprob, abs=1e-5)


def test_seed_and_position_decide(ops: SamplingOps) -> None:
    logits = torch.zeros((1, 5_000))

    def token(seed: int, length: int) -> int:
        sequence = Known(TokenParams(max_tokens=9, seed=seed), [1] * length)
        return read_back(sample_batch(ops, logits, [sequence])).token_ids[0]

    assert token(7, 3) == token(7, 3)
    assert len({token(seed, length) for seed in range(4) for length in (3, 4, 5)}) > 10


def test_greedy_takes_the_largest_processed_logit(ops: SamplingOps) -> None:
    logits = torch.tensor([[0.0, 3.0, 2.9, 0.0]])
    params = TokenParams(max_tokens=9, temperature=0.0, top_p=0.1, typical_p=0.1, frequency_penalty=0.2)
    assert sample_batch(ops, logits, [Known(params, [0])]).token_ids.tolist() == [1]
    assert sample_batch(ops, logits, [Known(params, [0], [1])]).token_ids.tolist() == [2]


@pytest.mark.parametrize("temperature", [0.0, 1e-12, 9e-6])
def test_tiny_temperatures_are_greedy(ops: SamplingOps, temperature: float) -> None:
    params = [TokenParams(max_tokens=9, temperature=temperature, seed=seed) for seed in range(20)]
    logits = torch.tensor([1.0, 1.0 - 1e-6, -1e30]).expand(20, -1)
    assert sample_batch(ops, logits, [Known(p) for p in params]).token_ids.tolist() == [0] * 20


def test_temperature_acts_before_min_p_and_penalties_before_temperature(ops: SamplingOps) -> None:
    logits = torch.log(torch.tensor([[0.6, 0.3, 0.1]])).expand(400, -1)

    def drawn(**fields: float) -> set[int]:
        batch = [Known(TokenParams(max_tokens=9, seed=i, **fields), [1], [0]) for i in range(400)]  # type: ignore[arg-type]
        return set(sample_batch(ops, logits, batch).token_ids.tolist())

    assert drawn(min_p=0.4) == {0, 1}
    assert drawn(min_p=0.4, temperature=0.5) == {0}
    assert drawn(min_p=0.4, temperature=2.0) == {0, 1, 2}
    assert drawn(min_p=0.9, presence_penalty=5.0) == {1}


def test_top_p_is_a_share_of_what_top_k_left(ops: SamplingOps) -> None:
    logits = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1]])).expand(400, -1)
    params = [TokenParams(max_tokens=9, seed=i, top_k=2, top_p=0.5) for i in range(400)]
    # of the whole, 0.5 would take two tokens; of the two that top_k leaves, the first alone has 0.57
    assert set(sample_batch(ops, logits, [Known(p) for p in params]).token_ids.tolist()) == {0}


def sample_rows(sampler: Sampler, logits: Tensor, row_list: list[int], length: int) -> list[int]:
    """One token for each of the rows, which all know `length` tokens."""
    rows, lengths = torch.tensor(row_list), torch.full((len(row_list),), length)
    output = sampler.sample(
        logits.repeat(len(row_list), 1),
        rows=rows,
        row_list=row_list,
        positions=lengths,
        token_table=torch.zeros((4, 8), dtype=torch.int32),
        lengths=lengths,
        length_list=[length] * len(row_list),
    )
    return read_back(output).token_ids


def greedy(**fields: Any) -> TokenParams:
    return TokenParams(max_tokens=9, temperature=0.0, **fields)


def test_a_row_that_is_used_again_forgets_its_last_sequence(ops: SamplingOps) -> None:
    state = SamplingState(2, 4, CPU)
    sampler, logits = Sampler(state, ops), torch.tensor([0.0, 3.0, 1.0, 2.0])
    state.set_row(1, greedy(min_tokens=2, stop_token_ids=(1,)), 3)
    assert [sample_rows(sampler, logits, [1], length) for length in (3, 4, 5)] == [[3], [3], [1]]
    state.set_row(1, greedy(logit_bias=((2, 9.0),)), 1)
    assert sample_rows(sampler, logits, [1], 1) == [2]
    state.set_row(1, greedy(), 1)
    assert sample_rows(sampler, logits, [1], 1) == [1]


def test_rows_may_join_leave_and_change_places_between_steps(ops: SamplingOps) -> None:
    state = SamplingState(4, 4, CPU)
    sampler, logits = Sampler(state, ops), torch.zeros(4)
    state.set_rows([(row, greedy(logit_bias=((row, 1.0),)), 1) for row in range(4)])
    for row_list in ([0, 1, 2], [2, 1, 0], [3], [1, 3, 0, 2], [1, 3]):
        assert sample_rows(sampler, logits, row_list, 1) == row_list


@pytest.mark.parametrize("seed", [2**64 + 5, -(2**70), 2**63], ids=str)
def test_any_integer_is_a_seed(ops: SamplingOps, seed: int) -> None:
    logits = torch.zeros((1, 1000))
    folded = (seed + 2**63) % 2**64 - 2**63
    got = [
        read_back(sample_batch(ops, logits, [Known(TokenParams(max_tokens=9, seed=s))])).token_ids
        for s in (seed, folded)
    ]
    assert got[0] == got[1]
