"""The watermark's kernels mark what their plain PyTorch twins mark, row by row."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from engines.native.kernels import triton_tournament, triton_watermark
from engines.native.sampling import torch_core, torch_watermark
from engines.native.sampling.torch_watermark import MarkedRows
from engines.native.types import GREEN_LIST, GREEN_LIST_SELF, GUMBEL, SYNTHID

VOCAB = 4500  # more than two chunks, the last one ragged
BATCH = 7
MAX_LEN = 40


def table(device: torch.device) -> torch.Tensor:
    """Rows of few different tokens, so that contexts repeat."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 3, (12, MAX_LEN), dtype=torch.int32, generator=generator).to(device)


def marked_rows(schemes: list[int], device: torch.device) -> MarkedRows:
    count = len(schemes)
    ints = torch.tensor(
        [
            [(3 * i + 1) % BATCH for i in range(count)],
            schemes,
            [(-1) ** i * (i + 1) * 0x1234_5678_9ABC_DEF for i in range(count)],
            [1 + i % 4 for i in range(count)],
            [2 + 3 * i for i in range(count)],
            [2**31 - i * 2**28 for i in range(count)],
        ]
    )
    deltas = 1.0 + torch.arange(count)
    return MarkedRows(ints.to(device), deltas.to(device), schemes, 4)


def logits_of(device: torch.device, scale: float = 3.0) -> torch.Tensor:
    logits = torch.randn((BATCH, VOCAB), generator=torch.Generator().manual_seed(2)) * scale
    logits[:, 100:200] = -torch.inf
    return logits.to(device)


@pytest.mark.parametrize("lengths", [[30, 31, 32, 33, 34, 35, 36], [1, 2, 3, 9, 12, 20, 21]], ids=["long", "short"])
def test_marks_equal_the_twins(device: torch.device, lengths: list[int]) -> None:
    marked = marked_rows([GREEN_LIST, GUMBEL, GREEN_LIST_SELF, GUMBEL, GREEN_LIST, GREEN_LIST_SELF], device)
    rows = torch.tensor([5, 3, 9, 0, 11, 2, 2], device=device)
    outputs = []
    for mark_tokens in (torch_watermark.mark_tokens, triton_watermark.mark_tokens):
        logits = logits_of(device)
        seeds, positions = torch.arange(BATCH, device=device), torch.arange(BATCH, device=device) + 50
        mark_tokens(logits, table(device), rows, torch.tensor(lengths, device=device), marked, seeds, positions)
        outputs.append((logits, seeds, positions))
    for expected, got in zip(*outputs, strict=True):
        assert torch.equal(got, expected)
    logits, seeds, positions = outputs[0]
    assert (logits != logits_of(device)).any(dim=1).sum() >= (4 if lengths[0] > 20 else 1)
    assert ((seeds == torch.arange(BATCH, device=device)) == (positions < 100)).all()


def test_contexts_that_occurred_before_are_not_fresh(device: torch.device) -> None:
    marked = marked_rows([SYNTHID] * BATCH, device)
    rows = torch.arange(BATCH, device=device)
    seen = set()
    for length in range(1, MAX_LEN):
        lengths = torch.full((BATCH,), length, device=device)
        expected = torch_watermark.fresh_contexts(table(device), rows, lengths, marked)
        got = triton_watermark.fresh_contexts(table(device), rows, lengths, marked)
        assert torch.equal(got[1], expected[1])
        assert torch.equal(got[0][got[1]], expected[0][expected[1]])
        seen.update(got[1].tolist())
    assert seen == {True, False}


@pytest.mark.parametrize("scale", [0.1, 3.0, 20.0], ids=["flat", "usual", "peaked"])
def test_tournament_equals_the_twins(device: torch.device, scale: float) -> None:
    at = torch.tensor([4, 0, 5, 2], device=device)
    keys = torch.tensor([7, -(2**60), 2**61, 1], device=device)
    is_marked = torch.tensor([True, True, True, False], device=device)
    temperature = torch.tensor([1.0, 0.7, 2.0, 1.0], device=device)
    depths = torch.tensor([30, 3, 32, 30], device=device)
    outputs = []
    for compete in (torch_watermark.compete, triton_tournament.compete):
        logits = logits_of(device, scale)
        compete(logits, at, keys, is_marked, temperature, depths, 32)
        outputs.append(logits)
    expected, got = outputs
    likely = expected.softmax(1) > 1e-30  # of the others' masses float32 has no digits, and a GPU none at all
    torch.testing.assert_close(got[likely], expected[likely], atol=1e-3, rtol=1e-4)
    for row in (1, 2, 3, 6):
        assert torch.equal(got[row], logits_of(device, scale)[row])
    torch.testing.assert_close(got.softmax(1), expected.softmax(1), atol=1e-5, rtol=1e-3)


def test_filtered_rows_keep_what_the_twin_keeps(device: torch.device) -> None:
    at = torch.tensor([3, 1, 6, 0, 5], device=device)
    arguments = (
        at,
        torch.tensor([1.0, 0.5, 2.0, 1.0, 1.0], device=device),
        torch.tensor([20, 0, 3000, 0, 7], device=device),
        torch.tensor([1.0, 0.9, 0.99, 1.0, 0.3], device=device),
        torch.tensor([0.0, 0.0, 0.01, 0.05, 0.0], device=device),
    )
    logits = (logits_of(device) * 4).round() / 4  # many ties
    expected, got = logits.clone(), logits.clone()
    torch_core.mask_filtered(expected, *arguments)
    triton_tournament.mask_filtered(got, *arguments)
    assert torch.equal(got, expected)
