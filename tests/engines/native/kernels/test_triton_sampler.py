"""The fused GPU sampler draws the token that its definition, written out with a sort, draws."""

import math

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from engines.native.kernels import triton_sampler
from engines.native.sampling.noise import gumbel_noise

VOCAB = 5000  # more than one chunk, the last one ragged


def sorted_sample(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float, seed: int,
                  position: int) -> int:  # fmt: skip
    """One row by the definition: min-p, then top-k, then top-p, ties by rising id; then noise - depth."""
    logits = logits.double().cpu()
    if temperature == 0.0:
        return int(logits.argmax())
    depths, ids = ((logits.max() - logits) / temperature).sort(stable=True)
    if min_p > 0.0:
        kept = int((depths <= -math.log(min_p)).sum())
        depths, ids = depths[:kept], ids[:kept]
    if top_k > 0:
        depths, ids = depths[:top_k], ids[:top_k]
    mass = (-depths).exp().cumsum(0)
    count = int((mass < top_p * mass[-1]).sum()) + 1 if top_p < 1.0 else len(ids)
    depths, ids = depths[:count], ids[:count]
    scores = gumbel_noise(torch.tensor(seed), torch.tensor(position), ids) - depths
    return int(ids[scores.argmax()])


def check(logits: torch.Tensor, temperature: list[float], top_k: list[int] | None = None,
          top_p: list[float] | None = None, min_p: list[float] | None = None) -> list[int]:  # fmt: skip
    rows, device = logits.shape[0], logits.device
    seeds = [seed * 1_000_003 - 7 for seed in range(rows)]
    positions = [3 * row + 100 for row in range(rows)]
    got, logprobs = triton_sampler.sample_with_logprobs(
        logits,
        torch.tensor(temperature, device=device),
        None if top_k is None else torch.tensor(top_k, device=device),
        None if top_p is None else torch.tensor(top_p, device=device),
        None if min_p is None else torch.tensor(min_p, device=device),
        torch.tensor(seeds, device=device),
        torch.tensor(positions, device=device),
    )
    expected = [
        sorted_sample(
            logits[row],
            temperature[row],
            top_k[row] if top_k else 0,
            top_p[row] if top_p else 1.0,
            min_p[row] if min_p else 0.0,
            seeds[row],
            positions[row],
        )
        for row in range(rows)
    ]
    assert got.tolist() == expected
    torch.testing.assert_close(
        logprobs, logits.float().log_softmax(-1).gather(1, got[:, None])[:, 0], atol=1e-4, rtol=1e-5
    )
    return expected


def random_logits(rows: int, device: torch.device, scale: float = 3.0, dtype=torch.float32) -> torch.Tensor:
    return (torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(rows)) * scale).to(device, dtype)


def test_noise_equals_its_definition(device: torch.device) -> None:
    """A flat row shows the noise itself: its argmax is the draw."""
    check(torch.zeros(6, VOCAB, device=device), [1.0] * 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_greedy_and_plain_rows(dtype: torch.dtype, device: torch.device) -> None:
    check(random_logits(5, device, dtype=dtype), [0.0, 1.0, 0.7, 0.01, 3.0])


def test_greedy_takes_the_lowest_of_equals(device: torch.device) -> None:
    logits = torch.zeros(1, VOCAB, device=device)
    logits[0, [17, 4500]] = 2.0
    assert check(logits, [0.0]) == [17]


def test_top_k(device: torch.device) -> None:
    check(random_logits(6, device), [1.0, 1.0, 2.0, 0.5, 9.0, 0.0], top_k=[1, 5, 50, 0, 4999, 3])


def test_top_p(device: torch.device) -> None:
    check(random_logits(6, device), [1.0, 1.0, 2.0, 0.5, 9.0, 0.0], top_p=[0.0, 0.5, 0.9, 0.99, 0.3, 0.5])


def test_min_p(device: torch.device) -> None:
    check(random_logits(4, device), [1.0, 1.0, 2.0, 9.0], min_p=[0.0, 0.1, 0.01, 0.5])


PAIRS = pytest.mark.parametrize("pairs", [16, 256], ids=["bisected", "ranked"])


@PAIRS
def test_filters_combine(pairs: int, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_sampler, "PAIRS", pairs)
    check(
        random_logits(6, device),
        [1.0, 1.5, 2.0, 0.5, 9.0, 4.0],
        top_k=[20, 100, 0, 7, 600, 40],
        top_p=[0.5, 0.9, 0.7, 1.0, 0.8, 0.95],
        min_p=[0.01, 0.0, 0.05, 0.1, 0.001, 0.0],
    )


@PAIRS
def test_ties_go_to_the_lowest_ids(pairs: int, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 logits on a coarse grid: the cut always falls among equals."""
    monkeypatch.setattr(triton_sampler, "PAIRS", pairs)
    logits = (random_logits(6, device) * 2).round() / 2
    check(logits, [1.0] * 6, top_k=[3, 30, 300, 3, 30, 300], top_p=[1.0, 1.0, 1.0, 0.6, 0.7, 0.9])
    check(torch.zeros(3, VOCAB, device=device), [1.0] * 3, top_k=[7, 0, 1000], top_p=[1.0, 0.25, 0.5])


def test_a_list_that_does_not_fit_is_no_limit(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_sampler, "SHORT_LIST", 256)
    check(
        random_logits(4, device, scale=0.5),
        [1.0, 1.0, 1.0, 0.9],
        top_k=[0, 2000, 1000, 0],
        top_p=[0.9, 1.0, 0.5, 1.0],
        min_p=[0.0, 0.0, 0.0, 0.01],
    )


def test_top_p_is_exact_whether_few_groups_hold_it_or_most_or_not_even_those(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_sampler, "FEW_GROUPS", 3)
    monkeypatch.setattr(triton_sampler, "SHORT_LIST", 1024)
    logits = torch.cat([random_logits(2, device, scale=scale) for scale in (6.0, 2.5, 1.2, 0.02)])
    check(logits, [1.0] * 8, top_p=[0.5, 0.9] * 4)


def test_masked_logits_are_never_drawn(device: torch.device) -> None:
    logits = torch.full((3, VOCAB), float("-inf"), device=device)
    logits[:, 4321] = 1.0
    logits[2, 7] = 0.5
    check(logits, [0.0, 1.0, 1.0], top_p=[1.0, 1.0, 0.9])


def test_a_row_does_not_depend_on_its_batch(device: torch.device) -> None:
    logits = random_logits(8, device)
    arguments = (
        torch.full((8,), 0.8, device=device),
        torch.full((8,), 40, device=device),
        torch.full((8,), 0.9, device=device),
        None,
        torch.arange(8, device=device),
        torch.arange(8, device=device),
    )
    together = triton_sampler.sample_core(logits, *arguments)
    alone = triton_sampler.sample_core(logits[3:4], *(None if a is None else a[3:4] for a in arguments))
    assert together[3] == alone[0]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's numpy, of NaNs
@pytest.mark.parametrize("vocab", [9000, 49152])  # chunks that are no power of two
def test_a_row_of_nans_gets_a_token_and_harms_no_other(vocab: int, device: torch.device) -> None:
    """What stands in unused places of a captured step, or comes of a model whose numbers overflow."""
    logits = torch.randn(12, vocab, generator=torch.Generator().manual_seed(5)).to(device)
    temperature = torch.tensor([0.0, 0.0, 0.8, 0.8] * 3, device=device)
    top_k = torch.tensor([0] * 4 + [20] * 4 + [0] * 4, device=device)
    top_p = torch.tensor([1.0] * 4 + [0.9] * 4 + [0.5] * 4, device=device)
    min_p = torch.zeros(12, device=device)
    keys = torch.arange(12, device=device)
    arguments = temperature, top_k, top_p, min_p, keys, keys
    expected = triton_sampler.sample_core(logits, *arguments)
    broken = logits.clone()
    broken[1::2] = float("nan")
    got = triton_sampler.sample_core(broken, *arguments)
    assert torch.equal(got[::2], expected[::2])
    assert bool(((got >= 0) & (got < vocab)).all())


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 33])
def test_real_vocabulary(rows: int, device: torch.device) -> None:
    logits = torch.randn(rows, 151936, device=device) * 2.5
    check(logits, [0.8] * rows)
    check(logits, [0.8] * rows, top_k=[20] * rows, top_p=[0.95] * rows)
    check(logits, [0.8] * rows, top_p=[0.9] * rows)
