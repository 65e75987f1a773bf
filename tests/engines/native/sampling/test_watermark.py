"""Marks are the hash's, whatever the batch; each meets the other parameters as the sampler's table of steps says."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import SynthIDTextWatermarkLogitsProcessor

from engines.native.sampling import torch_watermark
from engines.native.sampling.noise import random_bits
from engines.native.sampling.ops import TORCH_OPS, SamplingOps, sampling_ops
from engines.native.types import GREEN_LIST, GREEN_LIST_SELF, GUMBEL, SYNTHID, TokenParams, Watermark
from engines.native.watermark import prf
from engines.native.watermark.detect import detect
from tests.engines.native.sampling.batches import CPU, Known, read_back, sample_batch

VOCAB = 300
KEY = 0x1234_5678_9ABC_DEF0
GREEN = Watermark(GREEN_LIST, KEY, 1, threshold=2**31, delta=2.0)
SELF_HASH = Watermark(GREEN_LIST_SELF, KEY, 3, threshold=2**31, delta=2.0)
AARONSON = Watermark(GUMBEL, KEY, 4)
TOURNAMENT = Watermark(SYNTHID, KEY, 4, depth=30)
MARKS = [
    pytest.param(GREEN, id="green-list"),
    pytest.param(SELF_HASH, id="self-hash"),
    pytest.param(AARONSON, id="gumbel"),
    pytest.param(TOURNAMENT, id="synthid"),
]


def marked(mark: Watermark | None, **params: Any) -> TokenParams:
    return TokenParams(max_tokens=9, watermark=mark, **params)


def token(logits: Tensor, sequence: Known, ops: SamplingOps = TORCH_OPS) -> int:
    return read_back(sample_batch(ops, logits[None], [sequence])).token_ids[0]


def some_logits(seed: int, scale: float = 1.5) -> Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("mark", [GREEN, SELF_HASH], ids=["left", "self"])
def test_green_tokens_are_those_of_the_hash(mark: Watermark) -> None:
    prompt, output = (9, 200, 31), (7, 8)
    context = [*prompt, *output][-mark.context_width :]
    for token_id in range(0, VOCAB, 7):
        if mark.scheme == GREEN_LIST:
            bits = prf.token_bits(prf.context_key(KEY, context), prf.GREEN_DOMAIN, token_id)
        else:
            bits, _ = prf.self_hash_bits(KEY, context, token_id)
        rival = (token_id + 1) % VOCAB
        logits = torch.full((VOCAB,), -1e9)
        logits[token_id], logits[rival] = 0.0, 1.0  # one apart: the colour of both decides
        bias = torch.zeros(1, VOCAB)
        rows = torch.zeros(1, dtype=torch.int64)
        ints = torch.tensor([[0], [mark.scheme], [KEY], [mark.context_width], [3], [mark.threshold]])
        of_mark = torch_watermark.MarkedRows(ints, torch.tensor([2.0]), [mark.scheme], mark.context_width)
        table = torch.tensor([[*prompt, *output, 0]], dtype=torch.int32)
        torch_watermark.mark_tokens(bias, table, rows, torch.tensor([5]), of_mark, rows.clone(), rows.clone())
        assert bool(bias[0, token_id] == 2.0) == (bits < mark.threshold)


def test_the_compiled_lists_are_the_plain_ones() -> None:
    marks = [GREEN, SELF_HASH, msgspec.structs.replace(GREEN, context_width=3, threshold=2**29), AARONSON] * 2
    ints = torch.tensor(
        [[i, mark.scheme, mark.key, mark.context_width, 1, mark.threshold] for i, mark in enumerate(marks)]
    ).T.contiguous()
    of_marks = torch_watermark.MarkedRows(ints, torch.arange(8) + 1.0, [mark.scheme for mark in marks], 4)
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(0, VOCAB, (8, 20), generator=generator, dtype=torch.int32)
    lengths, rows = torch.tensor([2, 2, 2, 2, 9, 9, 9, 9]), torch.arange(8).flip(0)
    outputs = []
    for mark_tokens in (TORCH_OPS.mark_tokens, sampling_ops(CPU).mark_tokens):
        logits, seeds, positions = torch.stack([some_logits(i) for i in range(8)]), rows.clone(), lengths.clone()
        mark_tokens(logits, table, rows, lengths, of_marks, seeds, positions)
        outputs.append((logits, seeds, positions))
    for plain, compiled in zip(*outputs, strict=True):
        assert torch.equal(plain, compiled)


@pytest.mark.parametrize("scale", [0.1, 3.0, 20.0], ids=["flat", "usual", "peaked"])
def test_the_compiled_tournament_and_filters_are_the_plain_ones(scale: float) -> None:
    logits = torch.stack([some_logits(i, scale) for i in range(6)])
    logits[:, 40:90] = -torch.inf
    at, keys = torch.tensor([4, 0, 5, 2]), torch.tensor([7, -(2**60), 2**61, 1])
    temperature, depths = torch.tensor([1.0, 0.7, 2.0, 1.0]), torch.tensor([30, 3, 32, 30])
    filters = torch.tensor([20, 0, 100, 0]), torch.tensor([1.0, 0.9, 0.99, 1.0]), torch.tensor([0.0, 0.0, 0.01, 0.05])
    kept, competed = [], []
    for ops in (TORCH_OPS, sampling_ops(CPU)):
        filtered, played = (logits * 4).round() / 4, logits.clone()
        ops.mask_filtered(filtered, at, temperature, *filters)
        ops.compete(played, at, keys, torch.tensor([True, True, True, False]), temperature, depths, 32)
        kept.append(filtered)
        competed.append(played)
    assert torch.equal(*kept)
    torch.testing.assert_close(competed[1], competed[0], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(competed[1].softmax(1), competed[0].softmax(1), atol=1e-6, rtol=1e-3)
    assert torch.equal(competed[1][2], logits[2])


def test_gumbel_draws_the_token_whose_bits_are_least_for_its_probability(ops: SamplingOps) -> None:
    logits, output = some_logits(3), (5, 6, 7, 8)
    key = prf.context_key(KEY, output)
    log_probs = logits.double().log_softmax(0).tolist()
    uniforms = [(prf.token_bits(key, prf.GUMBEL_DOMAIN, token_id) + 0.5) / 2**32 for token_id in range(VOCAB)]
    expected = min(range(VOCAB), key=lambda i: -math.log1p(-uniforms[i]) / math.exp(log_probs[i]))
    for seed in range(3):
        assert token(logits, Known(marked(AARONSON, seed=seed), (1,), output), ops) == expected


@pytest.mark.parametrize("depth", [1, 9, 10, 11, 30])
def test_tournament_is_transformers(depth: int) -> None:
    """Their update of the scores from the bits of our hash: their own hash is another."""
    theirs = SynthIDTextWatermarkLogitsProcessor(
        ngram_len=5, keys=list(range(depth)), sampling_table_size=2**16, sampling_table_seed=0,
        context_history_size=1024, device=torch.device("cpu"),
    )  # fmt: skip
    logits = torch.stack([some_logits(1), some_logits(2, 5.0)])
    keys = torch.tensor([11, -12])
    temperature = torch.tensor([1.0, 0.6])
    bits = random_bits(keys[:, None], torch.full((2, 1), prf.SYNTHID_DOMAIN), torch.arange(VOCAB))
    g_values = (bits[..., None] >> torch.arange(depth)) & 1
    expected = theirs.update_scores(logits / temperature[:, None], g_values).softmax(1)
    got = logits.clone()
    depths = torch.full((2,), depth)
    torch_watermark.compete(got, torch.arange(2), keys, torch.tensor([True, True]), temperature, depths, depth)
    torch.testing.assert_close((got / temperature[:, None]).softmax(1), expected, atol=2e-6, rtol=2e-4)


def test_tournament_bits_are_the_hashs(ops: SamplingOps) -> None:
    """With one layer and two tokens the one with a 1 wins more often than it would."""
    output = (5, 6, 7, 8)
    key = prf.context_key(KEY, output)
    ones = [i for i in range(VOCAB) if prf.token_bits(key, prf.SYNTHID_DOMAIN, i) & 1]
    logits = torch.zeros(VOCAB)
    mark = msgspec.structs.replace(TOURNAMENT, depth=1)
    drawn = [token(logits, Known(marked(mark, seed=seed), (1,), output), ops) for seed in range(300)]
    assert sum(i in ones for i in drawn) > 300 * 0.65  # 3/4 expected


@pytest.mark.parametrize("mark", [AARONSON, TOURNAMENT], ids=["gumbel", "synthid"])
def test_distribution_is_unchanged_over_fresh_contexts(mark: Watermark, ops: SamplingOps) -> None:
    num_contexts, vocab = 4000, 24
    generator = torch.Generator().manual_seed(4)
    values = torch.randn(vocab, generator=generator) * 1.5
    outputs = torch.randint(0, 2**31 - 1, (num_contexts, 4), generator=generator).tolist()
    # One seed for all: what varies is the context alone for Gumbel-max, and the draw of a tournament's winner.
    params = [marked(mark, seed=i if mark.scheme == SYNTHID else 1, temperature=0.9) for i in range(num_contexts)]
    batch = [Known(of_row, (1,), output) for of_row, output in zip(params, outputs, strict=True)]
    drawn = torch.tensor(read_back(sample_batch(ops, values.repeat(num_contexts, 1), batch)).token_ids)
    expected = (values.double() / 0.9).softmax(0) * num_contexts
    chi_square = float(((torch.bincount(drawn, minlength=vocab) - expected) ** 2 / expected).sum())
    assert chi_square < (vocab - 1) + 4.5 * math.sqrt(2 * (vocab - 1))


@pytest.mark.parametrize("mark", [AARONSON, TOURNAMENT], ids=["gumbel", "synthid"])
def test_a_context_that_came_before_or_is_too_short_leaves_the_ordinary_draw(mark: Watermark, ops: SamplingOps) -> None:
    def differs(output: tuple[int, ...], prompt: tuple[int, ...] = (1, 2, 3, 4)) -> bool:
        return any(
            token(some_logits(seed), Known(marked(mark, seed=seed), prompt, output), ops)
            != token(some_logits(seed), Known(marked(None, seed=seed), prompt, output), ops)
            for seed in range(6)
        )

    assert differs((1, 2, 3, 4))
    assert not differs((1, 2, 3))  # the prompt is no context
    assert differs((9, 1, 2, 3, 4), (1, 2, 3, 4, 9))  # and repeats nothing
    assert not differs((1, 2, 3, 4, 9, 9, 1, 2, 3, 4))
    assert differs((1, 2, 3, 4, 9, 9, 1, 2, 3, 5))
    assert not differs((7, 7, 7, 7, 7))


@pytest.mark.parametrize("mark", MARKS)
def test_marks_do_not_depend_on_company_place_or_a_new_row(mark: Watermark, ops: SamplingOps) -> None:
    """A row that comes back from preemption is admitted with all its tokens: nothing else makes its marks."""
    batch = [
        Known(marked(of_row, seed=i, top_p=0.9 if i % 2 else 1.0, temperature=0.8), (3, i), tuple(range(i, i + 3 + i)))
        for i, of_row in enumerate([mark, None, GREEN, mark, AARONSON, TOURNAMENT, SELF_HASH, mark])
    ]
    logits = torch.stack([some_logits(i) for i in range(len(batch))])
    together = read_back(sample_batch(ops, logits, batch, rows=[4, 2, 9, 0, 7, 1, 3, 5])).token_ids
    assert together == [token(logits[i], sequence, ops) for i, sequence in enumerate(batch)]


@pytest.mark.parametrize("mark", MARKS)
def test_positions_of_one_step_are_marked_each_by_its_own_context(mark: Watermark) -> None:
    """A speculative step samples several positions of a sequence: as rows whose known tokens end one later each."""
    output = (8, 3, 5, 1, 2, 9, 4)
    ahead = [Known(marked(mark, seed=2), (1,), output[:end]) for end in (4, 5, 6, 7)]
    logits = torch.stack([some_logits(i) for i in range(4)])
    together = read_back(sample_batch(TORCH_OPS, logits, ahead)).token_ids
    assert together == [token(logits[i], sequence) for i, sequence in enumerate(ahead)]


def test_greedy_rows_feel_green_lists_alone(ops: SamplingOps) -> None:
    outputs = [(i, i + 1, i + 2, i + 3) for i in range(30)]

    def greedy(mark: Watermark | None) -> list[int]:
        rows = [Known(marked(mark, temperature=0.0), (1,), output) for output in outputs]
        return read_back(sample_batch(ops, torch.stack([some_logits(i) for i in range(30)]), rows)).token_ids

    assert greedy(AARONSON) == greedy(TOURNAMENT) == greedy(None)
    assert greedy(GREEN) != greedy(None)


@pytest.mark.parametrize("mark", MARKS)
def test_what_is_banned_or_filtered_stays_out_and_logprobs_are_the_models(mark: Watermark, ops: SamplingOps) -> None:
    for seed in range(12):
        output = (seed, 1, 2, 3)
        logits = some_logits(seed)
        best = logits.topk(6).indices.tolist()
        bans = tuple((i, -100.0) for i in best[:2])
        params = marked(mark, seed=seed, top_k=3, logit_bias=bans, logprobs=1)
        if mark.scheme in (GREEN_LIST, GREEN_LIST_SELF):  # whose bias comes before top-k
            params = msgspec.structs.replace(params, top_k=0, bad_words=tuple((i,) for i in best[:2]))
        sampled = read_back(sample_batch(ops, logits[None], [Known(params, (1,), output)]))
        chosen = sampled.token_ids[0]
        assert chosen not in best[:2]
        if params.top_k:
            assert chosen in best[2:5]
        assert sampled.logprobs[0].logprob == pytest.approx(float(logits.log_softmax(0)[chosen]), abs=1e-5)


def test_a_tournament_takes_place_among_what_the_filters_keep(ops: SamplingOps) -> None:
    """Filtered after the tournament, kept tokens would no longer be drawn as often as they should on average."""
    logits = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5])
    outputs = torch.randint(0, 2**31 - 1, (3000, 4), generator=torch.Generator().manual_seed(1)).tolist()
    batch = [Known(marked(TOURNAMENT, seed=i, top_k=3), (1,), output) for i, output in enumerate(outputs)]
    drawn = torch.tensor(read_back(sample_batch(ops, logits.repeat(3000, 1), batch)).token_ids)
    expected = logits[:3].double().softmax(0) * 3000
    counts = torch.bincount(drawn, minlength=6)
    assert counts[3:].sum() == 0
    assert float(((counts[:3] - expected) ** 2 / expected).sum()) < 20


def test_every_marked_row_of_a_mixed_batch_is_found_after_200_tokens() -> None:
    """32 requests at temperature 1, two nats a token: each mark at a false-positive rate of 1e-4, and no other."""
    marks = [
        replace_key(mark, i) for i, mark in enumerate([GREEN, SELF_HASH, AARONSON, TOURNAMENT, None] * 6 + [GREEN] * 2)
    ]
    texts: list[list[int]] = [[] for _ in marks]
    generator = torch.Generator().manual_seed(11)
    for _ in range(200):
        logits = torch.randn((len(marks), VOCAB), generator=generator) * 2.9
        batch = [
            Known(marked(mark, seed=i), (i,), text) for i, (mark, text) in enumerate(zip(marks, texts, strict=True))
        ]
        for text, drawn in zip(texts, read_back(sample_batch(sampling_ops(CPU), logits, batch)).token_ids, strict=True):
            text.append(drawn)
    for i, (mark, text) in enumerate(zip(marks, texts, strict=True)):
        if mark is not None:
            assert detect(text, mark).p_value <= 1e-4, i
            assert detect(text, replace_key(mark, i + 100)).p_value > 1e-4, i
    for mark in (GREEN, SELF_HASH, AARONSON, TOURNAMENT):
        assert detect(texts[4], mark).p_value > 1e-4


def replace_key(mark: Watermark | None, key: int) -> Watermark | None:
    return None if mark is None else msgspec.structs.replace(mark, key=key)
