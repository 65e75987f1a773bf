"""Both implementations of the core draw from the distribution that the parameters define, and agree token by token."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from engines.native.sampling.ops import TORCH_OPS, SamplingOps, sampling_ops
from engines.native.sampling.torch_core import kept_prefix

DRAWS = 20_000
NO_IDS = torch.zeros((1, 1), dtype=torch.int64)


def draw(
    ops: SamplingOps,
    row: Tensor,
    *,
    draws: int = DRAWS,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    typical_p: float | None = None,
    seed: int = 1,
) -> Tensor:
    """Token ids [draws] of one row of logits at positions 0, 1, ..."""
    if typical_p is not None:
        row = typical(ops, row, typical_p, temperature, min_p or 0.0)

    def column(value: float | None, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return None if value is None else torch.full((draws,), value, dtype=dtype)

    return ops.sample_core(
        row.expand(draws, -1).contiguous(),
        torch.full((draws,), temperature),
        column(top_k, torch.int64),
        column(top_p),
        column(min_p),
        torch.full((draws,), seed),
        torch.arange(draws),
    )


def typical(ops: SamplingOps, row: Tensor, typical_p: float, temperature: float = 1.0, min_p: float = 0.0) -> Tensor:
    logits = row[None].clone()
    at, values = torch.tensor([0]), (torch.tensor([v]) for v in (temperature, min_p, typical_p))
    ops.mask_typical(logits, at, *values)
    return logits[0]


def warped(row: Tensor, *warpers: LogitsProcessor) -> Tensor:
    scores = row[None].clone()
    for warper in warpers:
        scores = warper(NO_IDS, scores)  # type: ignore[operator]
    return scores[0]


def assert_drawn_from(token_ids: Tensor, expected: Tensor) -> None:
    """Chi-square test of the drawn tokens against probabilities [V]; rare tokens share a cell; 4 sigma."""
    counts = torch.bincount(token_ids, minlength=expected.numel()).double()
    assert counts[expected == 0].sum() == 0, "a token was drawn that should have been cut"
    cells = expected.double() * len(token_ids)
    common = cells >= 10
    observed = torch.cat((counts[common], counts[~common].sum()[None]))
    cells = torch.cat((cells[common], cells[~common].sum()[None]))
    observed, cells = observed[cells > 0], cells[cells > 0]
    chi_square = ((observed - cells) ** 2 / cells).sum().item()
    k = max(len(cells) - 1, 1)
    assert chi_square < k * (1 - 2 / (9 * k) + 4 * math.sqrt(2 / (9 * k))) ** 3  # Wilson-Hilferty


CASES = {
    "plain": ({}, []),
    "hot": ({"temperature": 1.7}, [TemperatureLogitsWarper(1.7)]),
    "cold": ({"temperature": 0.4}, [TemperatureLogitsWarper(0.4)]),
    "top_k": ({"top_k": 7}, [TopKLogitsWarper(7)]),
    "top_p": ({"top_p": 0.7}, [TopPLogitsWarper(0.7)]),
    "min_p": ({"min_p": 0.2}, [MinPLogitsWarper(0.2)]),
    "typical_p": ({"typical_p": 0.6}, [TypicalLogitsWarper(0.6)]),
    "temperature, min_p, top_k, top_p": (
        {"temperature": 0.8, "min_p": 0.02, "top_k": 15, "top_p": 0.9},
        [TemperatureLogitsWarper(0.8), MinPLogitsWarper(0.02), TopKLogitsWarper(15), TopPLogitsWarper(0.9)],
    ),
    "min_p, typical_p, top_k": (
        {"min_p": 0.05, "typical_p": 0.8, "top_k": 5},
        [MinPLogitsWarper(0.05), TypicalLogitsWarper(0.8), TopKLogitsWarper(5)],
    ),
}


@pytest.mark.parametrize(("parameters", "warpers"), CASES.values(), ids=CASES.keys())
def test_tokens_are_drawn_from_the_distribution_that_hugging_face_defines(
    ops: SamplingOps, parameters: dict[str, float], warpers: list[LogitsProcessor]
) -> None:
    row = torch.randn(60, generator=torch.Generator().manual_seed(3)) * 1.5
    assert_drawn_from(draw(ops, row, **parameters), warped(row, *warpers).softmax(0))  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [0.2, 3.0], ids=["flat", "peaked"])
def test_kept_sets_of_a_large_vocabulary_equal_hugging_faces(scale: float) -> None:
    logits = torch.randn((8, 20_000), generator=torch.Generator().manual_seed(5)) * scale
    scores, order = logits.sort(dim=1, descending=True, stable=True)
    for top_k, top_p in ((50, 1.0), (0, 0.9), (400, 0.95), (30_000, 0.3)):
        expected = logits
        if top_k:
            expected = TopKLogitsWarper(top_k)(NO_IDS, expected)  # type: ignore[arg-type]
        expected = TopPLogitsWarper(top_p)(NO_IDS, expected)  # type: ignore[arg-type]
        kept = kept_prefix(scores, torch.full((8,), top_k), torch.full((8,), top_p))
        kept = torch.empty_like(kept).scatter_(1, order, kept)
        differing = (kept == expected.isneginf()).sum().item()
        assert differing <= 8, "beyond one token a row at the edge, where float32 sums differ"


@pytest.mark.parametrize("typical_p", [0.05, 0.5, 0.95])
def test_typical_sets_equal_hugging_faces(ops: SamplingOps, typical_p: float) -> None:
    row = torch.randn(5_000, generator=torch.Generator().manual_seed(6)) * 2
    expected = TypicalLogitsWarper(typical_p)(NO_IDS, row[None])[0]  # type: ignore[arg-type]
    assert (typical(ops, row, typical_p) != expected).sum().item() <= 1


@pytest.mark.parametrize("vocab", [1, 7, 3_000, 49_152])
def test_compiled_and_plain_core_choose_the_same_tokens(vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    compiled, batch = sampling_ops(torch.device("cpu")), 12
    for scale, rounded in ((1.0, False), (4.0, True), (0.0, False)):
        logits = torch.randn((batch, vocab), generator=generator) * scale
        logits = logits.bfloat16().float() if rounded else logits  # ties
        logits[1, : vocab // 2] = -torch.inf
        temperature = torch.rand(batch, generator=generator) * 2
        temperature[0] = 0.0
        top_k = torch.randint(-1, 80, (batch,), generator=generator)
        top_p = torch.rand(batch, generator=generator) * 1.2
        min_p = torch.rand(batch, generator=generator) ** 4 - 0.05
        seeds = torch.randint(-(2**63), 2**63 - 1, (batch,), generator=generator)
        positions = torch.randint(0, 100_000, (batch,), generator=generator)
        for k, p, m in (
            (None, None, None),
            (top_k, None, None),
            (None, top_p, None),
            (None, top_p, min_p),
            (top_k, top_p, min_p),
        ):
            expected = TORCH_OPS.sample_core(logits, temperature, k, p, m, seeds, positions)
            assert torch.equal(compiled.sample_core(logits, temperature, k, p, m, seeds, positions), expected)


def test_core_leaves_the_logits_alone(ops: SamplingOps) -> None:
    row = torch.randn(50)
    before = row.clone()
    draw(ops, row, draws=1, top_k=3, top_p=0.5, min_p=0.1)
    assert torch.equal(row, before)


# --- edges ------------------------------------------------------------------------------------------------------------


def test_greedy_takes_the_lowest_id_among_equals(ops: SamplingOps) -> None:
    logits = torch.tensor([[0.0, 5.0, 1.0, 5.0], [-0.0, 0.0, -1.0, 0.0], [-torch.inf, -torch.inf, -9.0, -9.0]])
    assert ops.greedy(logits).tolist() == [1, 0, 2]
    zeros = torch.zeros(3, dtype=torch.int64)
    assert ops.sample_core(logits, torch.zeros(3), None, torch.ones(3) * 0.5, None, zeros, zeros).tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    "parameters",
    [{"top_p": 0.0}, {"top_p": 1e-6}, {"top_k": 1}, {"min_p": 1.0}, {"temperature": 1e-5}],
    ids=lambda parameters: "=".join(map(str, *parameters.items())),
)
def test_the_tightest_cut_keeps_the_likeliest_token(ops: SamplingOps, parameters: dict[str, float]) -> None:
    row = torch.randn(1_000, generator=torch.Generator().manual_seed(1)) * 3
    assert set(draw(ops, row, draws=50, **parameters).tolist()) == {row.argmax().item()}  # type: ignore[arg-type]


@pytest.mark.parametrize("parameters", [{"top_p": 0.0}, {"top_k": 1}], ids=["top_p", "top_k"])
def test_one_of_several_likeliest_tokens_is_kept_by_lowest_id(ops: SamplingOps, parameters: dict[str, float]) -> None:
    row = torch.tensor([1.0, 4.0, 4.0, 0.0, 4.0])
    assert set(draw(ops, row, draws=50, **parameters).tolist()) == {1}  # type: ignore[arg-type]


def test_equal_tokens_at_the_edge_are_cut_by_id(ops: SamplingOps) -> None:
    row = torch.tensor([0.0, 2.0, 0.0, 0.0, 2.0, 0.0])
    assert set(draw(ops, row, draws=500, top_k=4).tolist()) == {0, 1, 2, 4}
    flat = torch.zeros(10)
    assert set(draw(ops, flat, draws=500, top_p=0.35).tolist()) == {0, 1, 2, 3}
    assert set(draw(ops, flat[:4], draws=500, top_p=0.5).tolist()) == {0, 1}, "a mass that is met exactly is enough"


@pytest.mark.parametrize(
    "parameters",
    [{"top_k": 0}, {"top_k": -1}, {"top_k": 61}, {"top_k": 10**12}, {"top_p": 1.0}, {"min_p": 0.0}],
    ids=lambda parameters: "=".join(map(str, *parameters.items())),
)
def test_parameters_at_their_neutral_value_cut_nothing(ops: SamplingOps, parameters: dict[str, float]) -> None:
    row = torch.randn(60, generator=torch.Generator().manual_seed(2))
    got = draw(ops, row, draws=500, **parameters)  # type: ignore[arg-type]
    assert torch.equal(got, draw(ops, row, draws=500))


@pytest.mark.parametrize(
    "parameters",
    [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}, {"typical_p": 0.5}, {"temperature": 1e-30}],
    ids=lambda parameters: "-".join(parameters) or "plain",
)
def test_the_only_possible_token_is_chosen(ops: SamplingOps, parameters: dict[str, float]) -> None:
    row = torch.full((500,), -torch.inf)
    row[321] = -1e4
    assert set(draw(ops, row, draws=5, **parameters).tolist()) == {321}  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [1e-38, 1e-5, 1.0, 1e30])
def test_any_temperature_gives_a_token(ops: SamplingOps, temperature: float) -> None:
    row = torch.tensor([-3e38, -1e10, 0.0, 3e4, 3.1e4, -torch.inf])
    got = draw(ops, row, draws=200, temperature=temperature, top_p=0.99)
    assert (got == 5).sum() == 0
    assert temperature > 1.0 or set(got.tolist()) == {4}


def test_a_row_without_any_possible_token_gives_a_valid_id(ops: SamplingOps) -> None:
    row = torch.full((9,), -torch.inf)
    assert 0 <= draw(ops, row, draws=1, top_k=3, top_p=0.5)[0] < 9
