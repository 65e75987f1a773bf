"""The batch-invariant operations give a token the same bits in any company, and the values of the plain twins."""

import dataclasses

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from engines.native.kernels import reference
from engines.native.kernels.triton_invariant_ops import BatchInvariantOps
from tests.engines.native.kernels.ragged_batches import CachedBatch, cached_batch

OPS = BatchInvariantOps()


def on(device: torch.device, batch: CachedBatch, dtype: torch.dtype) -> CachedBatch:
    tensors = {name: getattr(batch.metadata, name).to(device) for name in
               ("query_start_loc", "seq_lens", "block_tables", "slot_mapping")}  # fmt: skip
    metadata = dataclasses.replace(batch.metadata, **tensors)
    moved = {name: getattr(batch, name).to(device, dtype) for name in ("query", "key_cache", "value_cache")}
    return CachedBatch(metadata=metadata, **moved)


def attention(batch: CachedBatch, window: int = 0) -> torch.Tensor:
    return OPS.paged_attention(batch.query, batch.key_cache, batch.value_cache, batch.metadata, 0.125, window)


@pytest.mark.parametrize(
    ("n", "k", "dtype"), [(64, 128, torch.float16), (25, 72, torch.float32)], ids=["even half", "ragged float"]
)
def test_products_of_a_token_are_the_same_at_every_batch_size(
    n: int, k: int, dtype: torch.dtype, device: torch.device
) -> None:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(70, k, generator=generator).to(device, dtype)
    weight = (torch.randn(2 * n, k, generator=generator) / k**0.5).to(device, dtype)
    residual, norm_weight = torch.randn(70, k).to(device, dtype), torch.rand(k).to(device, dtype)
    whole = OPS.linear(x, weight), OPS.logits(x, weight)
    gated = OPS.norm_gated_linear(x, residual, norm_weight, 1e-5, weight)[0]
    torch.testing.assert_close(whole[0], reference.linear(x, weight), atol=2e-2, rtol=2e-2)
    assert whole[1].dtype == torch.float32
    for size in (1, 17, 65):
        some = x[:size]
        assert torch.equal(OPS.linear(some, weight), whole[0][:size])
        assert torch.equal(OPS.logits(some, weight), whole[1][:size])
        got = OPS.norm_gated_linear(some, residual[:size], norm_weight, 1e-5, weight)[0]
        assert torch.equal(got, gated[:size])


@pytest.mark.parametrize("window", [0, 40], ids=["all", "window"])
def test_attention_of_a_sequence_is_the_same_alone_and_in_a_crowd(window: int, device: torch.device) -> None:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    batch = cached_batch([(1, 130), (1, 7), (40, 90)])
    together = attention(on(device, batch, dtype), window)
    starts = batch.metadata.query_start_loc.tolist()
    for i in range(3):
        alone = attention(on(device, batch.only(i), dtype), window)
        assert torch.equal(alone, together[starts[i] : starts[i + 1]])


def test_a_token_decoded_and_a_token_recomputed_in_a_prompt_are_the_same(device: torch.device) -> None:
    """What preemption and prefix hits rely on: a chunk's last row is the decode of that position."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    chunk = on(device, cached_batch([(90, 150)]), dtype)
    whole = attention(chunk)
    for size in (1, 20):
        tail = dataclasses.replace(
            chunk,
            query=chunk.query[-size:],
            metadata=dataclasses.replace(
                chunk.metadata,
                query_start_loc=torch.tensor([0, size], dtype=torch.int32, device=device),
                num_decodes=int(size == 1),
            ),
        )
        assert torch.equal(attention(tail), whole[-size:])


def test_padding_of_a_graph_yields_zeros(device: torch.device) -> None:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    batch = on(device, cached_batch([(1, 20), (1, 9)]), dtype)
    metadata = dataclasses.replace(batch.metadata, seq_lens=torch.tensor([20, 0], dtype=torch.int32, device=device))
    assert not attention(dataclasses.replace(batch, metadata=metadata))[1].any()
