"""Penalties, bias and bans equal Hugging Face's where it has them, and OpenAI's definition where that is the source."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from engines.native.sampling.batch import NoiseKeys, SamplingBatch
from engines.native.sampling.logits_processors import LogitsProcessor
from engines.native.sampling.ops import TORCH_OPS
from engines.native.sampling.sampler import PROCESSORS
from engines.native.sampling.state import SamplingState
from engines.native.types import TokenParams
from tests.engines.native.sampling.batches import CPU, Known

VOCAB = 40
PLAIN = Known(TokenParams(max_tokens=9, temperature=0.0), [3, 3, 8])


def processed(sequences: Sequence[Known], logits: Tensor) -> Tensor:
    """The logits after every processor that a sequence of the batch needs."""
    state = SamplingState(len(sequences), logits.shape[1], CPU)
    state.set_rows([(row, s.params, len(s.prompt)) for row, s in enumerate(sequences)])
    row_list, length_list = list(range(len(sequences))), [len(s.tokens) for s in sequences]
    token_table = torch.full((len(sequences), 30), 1, dtype=torch.int32)
    for row, s in enumerate(sequences):
        token_table[row, : len(s.tokens)] = torch.tensor(s.tokens, dtype=torch.int32)
    rows, lengths = torch.tensor(row_list), torch.tensor(length_list)
    batch = SamplingBatch(
        rows=rows,
        positions=lengths,
        lengths=lengths,
        token_table=token_table,
        row_list=row_list,
        length_list=length_list,
        noise=NoiseKeys(lengths, lengths),
    )
    logits = logits.clone()
    for kind in PROCESSORS:
        at = [i for i in row_list if state.features[i] & kind.feature]
        if at:
            processor: LogitsProcessor = kind.build(state, row_list, at, TORCH_OPS)
            processor.apply(logits, batch)
    return logits


def in_company(sequence: Known, logits: Tensor) -> Tensor:
    """The sequence's processed logits, and a check that its neighbours' logits stay as they were."""
    together = torch.stack((logits.flip(0), logits, logits * 0.5))
    got = processed([PLAIN, sequence, PLAIN], together)
    assert torch.equal(got[0], together[0])
    assert torch.equal(got[2], together[2])
    return got[1]


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(4)) * 3


def params(**fields: object) -> TokenParams:
    return TokenParams(**{"max_tokens": 10, "temperature": 0.0, **fields})  # type: ignore[arg-type]


def ids(sequence: Known) -> Tensor:
    return torch.tensor([sequence.tokens])


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_repetition_penalty_equals_hugging_faces(logits: Tensor, penalty: float) -> None:
    sequence = Known(params(repetition_penalty=penalty), [5, 9, 9, 30], [9, 2, 17])
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids(sequence), logits[None].clone())[0]  # type: ignore[arg-type]
    torch.testing.assert_close(in_company(sequence, logits), expected)


def test_presence_and_frequency_count_generated_tokens_only(logits: Tensor) -> None:
    sequence = Known(params(presence_penalty=0.6, frequency_penalty=-0.25), [5, 9, 9, 30], [9, 2, 17, 2, 2])
    counts = torch.bincount(torch.tensor(sequence.output), minlength=VOCAB)
    expected = logits - 0.6 * (counts > 0) + 0.25 * counts
    torch.testing.assert_close(in_company(sequence, logits), expected)


def test_presence_and_frequency_leave_a_fresh_sequence_alone(logits: Tensor) -> None:
    sequence = Known(params(presence_penalty=0.6, frequency_penalty=0.25), [5, 9])
    assert torch.equal(in_company(sequence, logits), logits)
    older = Known(sequence.params, [1], [7, 7])
    assert torch.equal(processed([older, sequence], torch.stack((logits, logits)))[1], logits)


def test_rows_of_different_length_are_penalized_alike_alone_and_together(logits: Tensor) -> None:
    penalties = params(repetition_penalty=1.4, presence_penalty=0.3, frequency_penalty=0.2)
    sequences = [Known(penalties, [1] * n, list(range(n, 2 * n + 1))) for n in (1, 5, 9)]
    together = processed(sequences, logits.expand(3, -1))
    for i, sequence in enumerate(sequences):
        assert torch.equal(together[i], processed([sequence], logits[None])[0])


def test_bad_words_equal_hugging_faces(logits: Tensor) -> None:
    words = ((7,), (9, 2, 4), (2, 4), (2, 5), (30, 9, 2, 6), (8, 9, 2, 6), (5, 30, 9, 2, 9, 2, 1))
    sequence = Known(params(bad_words=words), [5, 30, 9], [2, 9, 2])
    processor = NoBadWordsLogitsProcessor([list(word) for word in words], eos_token_id=39)
    expected = processor(ids(sequence), logits[None].clone())[0]  # type: ignore[arg-type]
    got = in_company(sequence, logits)
    assert torch.equal(got, expected)
    assert got.isneginf().nonzero().flatten().tolist() == [1, 4, 5, 7]


def test_a_word_longer_than_the_sequence_matches_nothing(logits: Tensor) -> None:
    sequence = Known(params(bad_words=((1, 1, 1, 1, 6), (5, 5, 6))), [5])
    assert torch.equal(in_company(sequence, logits), logits)


@pytest.mark.parametrize(("generated", "held"), [(0, True), (2, True), (3, False), (4, False)])
def test_stop_tokens_are_held_until_min_tokens(logits: Tensor, generated: int, held: bool) -> None:
    sequence = Known(params(min_tokens=3, stop_token_ids=(0, 12)), [5, 9], [4] * generated)
    processor = MinNewTokensLengthLogitsProcessor(2, 3, [0, 12])
    expected = processor(ids(sequence), logits[None].clone())[0]  # type: ignore[arg-type]
    got = in_company(sequence, logits)
    assert torch.equal(got, expected)
    assert got[[0, 12]].isneginf().all().item() == held


def test_stop_tokens_are_held_row_by_row(logits: Tensor) -> None:
    waiting = params(min_tokens=3, stop_token_ids=(12,))
    got = processed([Known(waiting, [5], [4] * n) for n in (2, 3, 0)], logits.expand(3, -1))
    assert got[:, 12].isneginf().tolist() == [True, False, True]


def test_bias_is_added_once_per_token(logits: Tensor) -> None:
    sequence = Known(params(logit_bias=((3, 5.0), (0, -100.0), (39, 1.5))), [1])
    expected = logits.clone()
    expected[[3, 0, 39]] += torch.tensor([5.0, -100.0, 1.5])
    assert torch.equal(in_company(sequence, logits), expected)


def test_no_tokens_are_left_but_the_allowed_ones(logits: Tensor) -> None:
    got = in_company(Known(params(allowed_token_ids=(3, 39, VOCAB)), [1]), logits)
    assert (~got.isneginf()).nonzero().flatten().tolist() == [3, 39]
    assert torch.equal(got[[3, 39]], logits[[3, 39]])


def test_a_ban_of_an_allowed_token_yields_only_where_nothing_else_is_left(logits: Tensor) -> None:
    got = in_company(Known(params(allowed_token_ids=(3, 39), bad_words=((3,),)), [1]), logits)
    assert int(got.argmax()) == 39
    alone = in_company(Known(params(allowed_token_ids=(3,), bad_words=((3,),)), [1]), logits)
    assert int(alone.argmax()) == 3
    assert alone.isfinite().sum() == 1


def test_token_ids_outside_the_vocabulary_have_no_effect(logits: Tensor) -> None:
    fields = {
        "logit_bias": ((VOCAB, 5.0), (-1, 5.0)),
        "bad_words": ((VOCAB,), (-3,), ()),
        "stop_token_ids": (VOCAB, -1),
        "min_tokens": 5,
    }
    assert torch.equal(in_company(Known(params(**fields), [1]), logits), logits)


def test_a_ban_outlives_bias_and_penalties(logits: Tensor) -> None:
    fields = {
        "bad_words": ((4,), (5,)),
        "logit_bias": ((4, 100.0),),
        "repetition_penalty": 0.5,
        "presence_penalty": -2.0,
        "frequency_penalty": -2.0,
    }
    got = in_company(Known(params(**fields), [1], [4, 5, 4]), logits)
    assert got[[4, 5]].isneginf().all()
    assert not got.isnan().any()
