"""A grammar's mask: what is not allowed cannot be sampled, what is allowed keeps its chances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.native.sampling.batch import DeviceMasks
from engines.native.sampling.ops import TORCH_OPS, SamplingOps, sampling_ops
from engines.native.sampling.sampler import Sampler
from engines.native.sampling.state import SamplingState
from engines.native.types import TokenParams
from tests.engines.native.sampling.batches import CPU

INF = float("inf")


def packed(allowed: np.ndarray) -> torch.Tensor:
    """[n, V] bool -> [n, ceil(V / 32)] int32."""
    padded = np.pad(allowed, ((0, 0), (0, -allowed.shape[1] % 32)))
    return torch.from_numpy(np.packbits(padded, axis=1, bitorder="little").view(np.int32))


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 5), vocab=st.integers(1, 200), seed=st.integers(0, 999), data=st.data())
def test_disallowed_tokens_get_minus_infinity_and_nothing_else_changes(rows, vocab, seed, data):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(rows, vocab)).astype(np.float32))
    at = data.draw(st.lists(st.integers(0, rows - 1), unique=True))
    allowed = rng.random((len(at), vocab)) < 0.3
    expected = logits.clone()
    for i, row in enumerate(at):
        expected[row][~torch.from_numpy(allowed[i])] = -INF
    for ops in (TORCH_OPS, sampling_ops(CPU)):
        got = logits.clone()
        ops.mask_tokens(got, torch.tensor(at, dtype=torch.int64), packed(allowed))
        assert torch.equal(got, expected)


def test_a_ban_yields_where_the_grammar_allows_nothing_else(ops: SamplingOps):
    logits = torch.tensor([[0.0, -INF, -INF, 5.0], [1.0, -INF, 2.0, 5.0]])
    allowed = np.array([[False, True, False, False], [True, True, False, False]])
    ops.mask_tokens(logits, torch.tensor([0, 1]), packed(allowed))
    assert logits.argmax(1).tolist() == [1, 0]
    assert logits.isfinite().tolist() == allowed.tolist()


def sample(ops: SamplingOps, allowed: list[list[int]], params: TokenParams, rounds: int = 40) -> list[set[int]]:
    """The tokens that rows of one batch get over some positions; only rows with something in `allowed` are masked."""
    vocab, batch = 70, len(allowed)
    state = SamplingState(batch, vocab, CPU)
    state.set_rows([(row, params, 1) for row in range(batch)])
    sampler = Sampler(state, ops)
    masked = [row for row in range(batch) if allowed[row]]
    bits = np.zeros((len(masked), vocab), dtype=bool)
    for i, row in enumerate(masked):
        bits[i, allowed[row]] = True
    masks = DeviceMasks(torch.tensor(masked), packed(bits))
    table = torch.ones((batch, rounds + 2), dtype=torch.int32)
    got: list[set[int]] = [set() for _ in range(batch)]
    generator = torch.Generator().manual_seed(7)
    for length in range(1, rounds):
        output = sampler.sample(
            torch.randn(batch, vocab, generator=generator) * 3,
            rows=torch.arange(batch),
            row_list=list(range(batch)),
            positions=torch.full((batch,), length),
            token_table=table,
            lengths=torch.full((batch,), length),
            length_list=[length] * batch,
            masks=masks,
        )
        for row, token in enumerate(output.token_ids.tolist()):
            got[row].add(token)
            assert output.logprobs is None or len(output.logprobs.to_host()) == batch
    return got


@pytest.mark.parametrize(
    "params",
    [
        pytest.param({"temperature": 0.0}, id="greedy"),
        pytest.param({"temperature": 1.5, "seed": 3}, id="random"),
        pytest.param({"top_p": 0.3, "top_k": 4, "min_p": 0.1, "seed": 4}, id="filters"),
        pytest.param({"typical_p": 0.5, "seed": 5}, id="typical"),
        pytest.param({"temperature": 1e-5, "seed": 5}, id="coldest"),
        pytest.param({"repetition_penalty": 2.0, "frequency_penalty": 1.0, "logprobs": 2}, id="penalties"),
        pytest.param({"min_tokens": 99, "stop_token_ids": (3, 69), "seed": 6}, id="min-tokens"),
        pytest.param({"bad_words": ((3,), (64,)), "logit_bias": ((69, -100.0),), "seed": 6}, id="bans"),
    ],
)
def test_only_allowed_tokens_are_sampled_whatever_else_is_asked(ops: SamplingOps, params: dict):
    allowed = [[3], [], [3, 64, 69], [0, 1, 2, 31, 32, 33]]
    got = sample(ops, allowed, TokenParams(max_tokens=99, **params))
    assert got[0] == {3}
    assert got[2] <= {3, 64, 69}
    assert got[3] <= {0, 1, 2, 31, 32, 33}
    assert len(got[3]) > 1
    assert len(got[1]) > 6, "the row without a grammar is free"
