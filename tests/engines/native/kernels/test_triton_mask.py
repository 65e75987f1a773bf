"""The GPU's masking kernel changes logits exactly as its definition does."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from engines.native.kernels import triton_mask
from engines.native.sampling import torch_core


@pytest.mark.parametrize("vocab", [31, 5000, 8192], ids="vocab={}".format)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_logits_equal_the_definition(vocab: int, dtype: torch.dtype, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = (torch.randn(5, vocab, generator=generator) * 3).to(dtype)
    logits[:, ::7] = -torch.inf  # banned by an earlier pass
    words = -(-vocab // 32)
    bits = torch.randint(-(2**31), 2**31, (3, words), generator=generator).int()
    at = torch.tensor([4, 0, 2])
    expected = logits.clone()
    torch_core.mask_tokens(expected, at, bits)
    got = logits.to(device)
    triton_mask.mask_tokens(got, at.to(device), bits.to(device))
    assert torch.equal(got.cpu(), expected)


def test_rows_of_wider_storage_and_no_rows_at_all(device: torch.device) -> None:
    storage = torch.zeros(3, 128, device=device)
    logits = storage[:, :70]
    triton_mask.mask_tokens(
        logits, torch.empty(0, dtype=torch.int64, device=device), torch.empty((0, 3), dtype=torch.int32, device=device)
    )
    assert torch.equal(storage, torch.zeros_like(storage))
    bits = torch.tensor([[1, 0, 0]], dtype=torch.int32, device=device)
    triton_mask.mask_tokens(logits, torch.tensor([1], device=device), bits)
    assert logits[1].isfinite().sum() == 1
    assert torch.equal(storage[1, 70:], torch.zeros_like(storage[1, 70:])), "beyond the vocabulary nothing is written"
