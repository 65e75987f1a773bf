"""Pooled in chunks, in padded rows and at once: the same vectors, by sentence-transformers' formulas."""

from __future__ import annotations

import random
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.native.pooling import ChunkPooling, HostVectors, pooled
from engines.native.types import (
    CLS_TOKEN,
    LAST_TOKEN,
    MAX_TOKENS,
    MEAN_TOKENS,
    Admission,
    BatchPlan,
    Pooling,
    TokenParams,
)

SIZE = 8
MODES = [LAST_TOKEN, MEAN_TOKENS, CLS_TOKEN, MAX_TOKENS]


def formula(states: torch.Tensor, mode: int) -> torch.Tensor:
    return {
        LAST_TOKEN: lambda: states[-1],
        CLS_TOKEN: lambda: states[0],
        MEAN_TOKENS: lambda: states.mean(0),
        MAX_TOKENS: lambda: states.max(0).values,
    }[mode]()


def read(vector: bytes) -> torch.Tensor:
    return torch.tensor(struct.unpack(f"<{len(vector) // 4}f", vector))


@pytest.mark.parametrize("mode", MODES)
def test_padding_has_no_say(mode: int):
    torch.manual_seed(1)
    lengths = torch.tensor([3, 7, 1])
    hidden = torch.randn(3, 7, SIZE)
    hidden[0, 3:] = hidden[2, 1:] = 1e9
    expected = torch.stack([formula(hidden[i, :length], mode) for i, length in enumerate(lengths)])
    torch.testing.assert_close(pooled(hidden, lengths, mode), expected)


@settings(max_examples=60, deadline=None)
@given(
    sequences=st.lists(st.tuples(st.sampled_from(MODES), st.integers(1, 9)), min_size=1, max_size=5),
    seed=st.integers(0, 2**20),
)
def test_chunks_of_any_size_beside_decodes_bring_the_vector_of_the_whole(sequences, seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    states = [torch.randn(length, SIZE) for _, length in sequences]
    pooling = ChunkPooling()
    for row, (mode, length) in enumerate(sequences):
        pooling.admit(Admission(row, [0] * length, length, TokenParams(max_tokens=0, pooling=Pooling(mode, False))))
    pooling.admit(Admission(7, [0], 1, TokenParams(max_tokens=9)))
    done = [0] * len(sequences)
    found: dict[int, torch.Tensor] = {}
    while any(count < length for count, (_, length) in zip(done, sequences, strict=True)):
        open_rows = [row for row, (_, length) in enumerate(sequences) if done[row] < length]
        rows = rng.sample(open_rows, rng.randint(1, len(open_rows)))
        counts = [rng.randint(1, sequences[row][1] - done[row]) for row in rows]
        plan = BatchPlan([7, *rows], [5, *(done[row] for row in rows)], [1, *counts], [True] + [False] * len(rows), 1)
        assert pooling.concerns(plan)
        parts = [states[row][done[row] : done[row] + count] for row, count in zip(rows, counts, strict=True)]
        embedded = pooling.take(plan, torch.cat([torch.randn(1, SIZE), *parts]))
        for row, count in zip(rows, counts, strict=True):
            done[row] += count
        if embedded is not None:
            found |= {plan.rows[place]: read(vector) for place, vector in embedded.by_place().items()}
    assert sorted(found) == list(range(len(sequences)))
    for row, (mode, _) in enumerate(sequences):
        torch.testing.assert_close(found[row], formula(states[row], mode))


def test_a_row_given_to_another_sequence_is_forgotten():
    pooling = ChunkPooling()
    pooling.admit(Admission(0, [0, 0], 2, TokenParams(max_tokens=0, pooling=Pooling())))
    pooling.admit(Admission(0, [0, 0], 2, TokenParams(max_tokens=1)))
    plan = BatchPlan([0], [0], [2], [True])
    assert not pooling.concerns(plan)
    assert pooling.take(plan, torch.zeros(2, SIZE)) is None


def test_vectors_are_cut_and_scaled_as_each_asks():
    torch.manual_seed(2)
    raw = torch.randn(4, SIZE) * 5
    asked = [Pooling(), Pooling(normalized=False), Pooling(dimensions=3), Pooling(normalized=False, dimensions=2)]
    whole, plain, short, shortest = map(read, HostVectors(raw, asked).to_bytes())
    torch.testing.assert_close(whole, torch.nn.functional.normalize(raw[0], dim=0))
    torch.testing.assert_close(plain, raw[1])
    torch.testing.assert_close(short, torch.nn.functional.normalize(raw[2, :3], dim=0))
    torch.testing.assert_close(shortest, torch.nn.functional.normalize(raw[3, :2], dim=0))
