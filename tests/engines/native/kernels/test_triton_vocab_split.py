"""The kernels that compare parts of a vocabulary give what the whole vocabulary gives."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from engines.native.kernels import triton_vocab_split
from engines.native.sampling import torch_core

ROWS = 20


@pytest.mark.parametrize("vocab", [97, 5000])
@pytest.mark.parametrize("num_parts", [1, 3])
def test_parts_compare_to_the_whole(vocab: int, num_parts: int, device: torch.device) -> None:
    logits = (torch.randn(ROWS, vocab, generator=torch.Generator().manual_seed(2)) * 4).to(device)
    temperature = torch.tensor([0.0, 0.5, 1.0, 2.0], device=device).repeat(ROWS // 4)
    seeds, positions = (torch.arange(ROWS, device=device) + start for start in (10**15, 7))
    share = -(-vocab // num_parts)
    starts = range(0, vocab, share)
    sampled = [
        triton_vocab_split.local_best(logits[:, at : at + share], temperature, seeds, positions, at) for at in starts
    ]
    whole = torch_core.sample_core(logits, temperature, None, None, None, seeds, positions)
    assert torch.equal(triton_vocab_split.best_of(torch.stack(sampled), temperature), whole)
    greedy = [triton_vocab_split.local_best(logits[:, at : at + share], None, None, None, at) for at in starts]
    assert torch.equal(triton_vocab_split.best_of(torch.stack(greedy), None), logits.argmax(dim=1))


def test_masked_chunks_and_ties(device: torch.device) -> None:
    logits = torch.full((2, 9000), -torch.inf, device=device)
    logits[:, [8500, 8900]] = -3.0
    temperature, keys = torch.tensor([0.0, 0.0], device=device), torch.arange(2, device=device)
    offer = triton_vocab_split.local_best(logits, temperature, keys, keys, 100)
    assert triton_vocab_split.best_of(offer[None], temperature).tolist() == [8600, 8600]
