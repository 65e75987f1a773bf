"""The Triton attention kernels agree with the plain PyTorch twin on ragged batches."""

import dataclasses

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from engines.native.kernels import reference, triton_attention
from engines.native.kernels.ops import Rotary
from engines.native.kernels.triton_attention_decode import choose_decode_tiles, num_decode_splits
from engines.native.kernels.triton_attention_prefill import choose_prefill_tiles
from engines.native.kernels.triton_launch import arrival_counters
from engines.native.kernels.triton_ops import TritonOps
from engines.native.layers.attention_metadata import AttentionMetadata


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    query: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    metadata: AttentionMetadata


def ragged_batch(
    query_lens: list[int],
    seq_lens: list[int],
    device: torch.device,
    *,
    block_size: int = 16,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 64,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Batch:
    """Random queries and caches; blocks are dealt in random order and what no sequence owns is NaN.

    By default in bfloat16 on a GPU and in float32 where interpreted: the interpreter multiplies no bfloat16.
    """
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    generator = torch.Generator().manual_seed(seed)
    blocks_of = [-(-length // block_size) for length in seq_lens]
    num_blocks = sum(blocks_of) + 3
    order = torch.randperm(num_blocks, generator=generator).int()
    tables = torch.full((len(seq_lens), max(blocks_of) + 1), num_blocks + 1000, dtype=torch.int32)
    caches = [torch.full((num_blocks, block_size, num_kv_heads, head_dim), float("nan")) for _ in range(2)]
    used = 0
    for row, (count, length) in enumerate(zip(blocks_of, seq_lens, strict=True)):
        tables[row, :count] = order[used : used + count]
        for cache in caches:
            filled = cache[tables[row, :count].long()].flatten(0, 1)
            filled[:length] = torch.randn(length, num_kv_heads, head_dim, generator=generator)
            cache[tables[row, :count].long()] = filled.view(count, block_size, num_kv_heads, head_dim)
        used += count
    starts = torch.tensor([0, *query_lens]).cumsum(0)
    query = torch.randn(int(starts[-1]), num_heads, head_dim, generator=generator)
    metadata = AttentionMetadata(
        query_start_loc=starts.int().to(device),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),
        block_tables=tables.to(device),
        slot_mapping=torch.full((int(starts[-1]),), -1, device=device),
        num_decodes=next((i for i, length in enumerate(query_lens) if length != 1), len(query_lens)),
        max_query_len=max(query_lens),
        max_seq_len=max(seq_lens),
    )
    key_cache, value_cache = (cache.to(device, dtype) for cache in caches)
    return Batch(query.to(device, dtype), key_cache, value_cache, metadata)


def assert_matches_reference(batch: Batch, *, sliding_window: int = 0, split_tokens: int = 0) -> None:
    scale = batch.query.shape[-1] ** -0.5
    arguments = (batch.query, batch.key_cache, batch.value_cache, batch.metadata, scale, sliding_window)
    got = triton_attention.paged_attention(*arguments, split_tokens=split_tokens)
    tolerance = 1e-5 if batch.query.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(got, reference.paged_attention(*arguments), atol=tolerance, rtol=tolerance)


LENGTHS = {
    "decodes": ([1, 1, 1], [1, 70, 200]),
    "prefills from nothing": ([5, 40, 1], [5, 40, 1]),
    "chunks after a context": ([7, 33], [150, 40]),
    "decodes, then chunks": ([1, 1, 20, 3], [129, 64, 85, 3]),
    "a padding sequence of length 0": ([1, 1, 1], [90, 0, 33]),
}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_ragged_batches_match_the_reference(lengths: tuple[list[int], list[int]], device: torch.device) -> None:
    assert_matches_reference(ragged_batch(*lengths, device))


@pytest.mark.parametrize("block_size", [1, 3, 16, 64, 128])
def test_any_block_size(block_size: int, device: torch.device) -> None:
    assert_matches_reference(ragged_batch([1, 1, 18], [77, 140, 90], device, block_size=block_size))


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"),
    [(2, 2, 64), (8, 1, 128), (6, 2, 80), (14, 2, 64)],
    ids=["no group", "one KV head", "odd head dim", "group of 7"],
)
def test_head_layouts(num_heads: int, num_kv_heads: int, head_dim: int, device: torch.device) -> None:
    batch = ragged_batch(
        [1, 1, 11], [100, 20, 70], device, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim
    )
    assert_matches_reference(batch)


@pytest.mark.parametrize("window", [1, 10, 64, 500])
def test_sliding_window(window: int, device: torch.device) -> None:
    assert_matches_reference(ragged_batch([1, 1, 40], [200, 9, 130], device), sliding_window=window)


def test_float16(device: torch.device) -> None:
    assert_matches_reference(ragged_batch([1, 1, 20], [129, 64, 85], device, dtype=torch.float16))


def test_more_splits_than_the_merge_reads_at_once(device: torch.device) -> None:
    batch = ragged_batch([1], [64 * 20 + 5], device, num_heads=8, num_kv_heads=1)
    assert num_decode_splits(1, 1, batch.metadata.max_seq_len, split_tokens=64) == 21
    assert_matches_reference(batch, split_tokens=64)
    assert not arrival_counters(device).any()


def test_fixed_splits_make_a_sequence_independent_of_its_batch(device: torch.device) -> None:
    batch = ragged_batch([1] * 6, [300, 64, 1, 520, 129, 260], device)
    assert_matches_reference(batch, split_tokens=128)
    scale = batch.query.shape[-1] ** -0.5
    together = triton_attention.paged_attention(
        batch.query, batch.key_cache, batch.value_cache, batch.metadata, scale, split_tokens=128
    )
    metadata = dataclasses.replace(
        batch.metadata,
        query_start_loc=batch.metadata.query_start_loc[:2],
        seq_lens=batch.metadata.seq_lens[3:4],
        block_tables=batch.metadata.block_tables[3:4],
        num_decodes=1,
    )
    alone = triton_attention.paged_attention(
        batch.query[3:4], batch.key_cache, batch.value_cache, metadata, scale, split_tokens=128
    )
    assert torch.equal(together[3:4], alone)


@pytest.mark.parametrize(
    "choose",
    [
        choose_prefill_tiles,
        lambda *shape: choose_decode_tiles(*shape, 8),
        lambda *shape: choose_decode_tiles(*shape, 512),
    ],
)
@pytest.mark.parametrize("element_size", [2, 4])
@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
def test_tiles_fit_shared_memory(choose, element_size: int, head_dim: int) -> None:
    """Queries, and the keys and values of every stage, in 227 KiB: what a block may have on an H100."""
    tiles, row_bytes = choose(head_dim, element_size), (1 << (head_dim - 1).bit_length()) * element_size
    rows = tiles.query_rows + 2 * tiles.num_stages * tiles.key_rows
    assert rows * row_bytes <= 227 * 1024


@pytest.mark.parametrize("head_dim", [128, 256])
def test_wide_rows_of_float32(head_dim: int, device: torch.device) -> None:
    batch = ragged_batch([1, 20], [65, 40], device, head_dim=head_dim, dtype=torch.float32)
    assert_matches_reference(batch)


@pytest.mark.gpu
@pytest.mark.parametrize("block_size", [16, 64, 256])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_decode_at_real_shapes(batch_size: int, block_size: int, device: torch.device) -> None:
    seq_lens = [900 + 37 * i % 400 for i in range(batch_size)]
    batch = ragged_batch(
        [1] * batch_size,
        seq_lens,
        device,
        block_size=block_size,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
    )
    assert_matches_reference(batch)


@pytest.mark.gpu
@pytest.mark.parametrize("block_size", [16, 64, 256])
def test_prefill_at_real_shapes(block_size: int, device: torch.device) -> None:
    batch = ragged_batch(
        [1, 1, 700, 1, 1024],
        [1500, 90, 1900, 40, 1024],
        device,
        block_size=block_size,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
    )
    assert_matches_reference(batch)


@pytest.mark.parametrize("window", [0, 30])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_a_cache_in_e4m3_is_read_as_it_is(
    lengths: tuple[list[int], list[int]], window: int, device: torch.device
) -> None:
    batch = ragged_batch(*lengths, device)
    caches = [cache.nan_to_num().to(torch.float8_e4m3fn) for cache in (batch.key_cache, batch.value_cache)]
    assert_matches_reference(Batch(batch.query, caches[0], caches[1], batch.metadata), sliding_window=window)


@pytest.mark.parametrize("qk_norm", [False, True], ids=["plain", "qk-norm"])
@pytest.mark.parametrize(
    ("seq_lens", "block_size", "window"),
    [([1, 5, 0, 200], 16, 0), ([64, 65, 128, 1], 16, 0), ([700], 64, 0), ([300, 20], 5, 40)],
    ids=["padding", "at tiles' ends", "splits", "window"],
)
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 2, 64), (3, 3, 16), (8, 1, 80)])
def test_decodes_rotate_and_cache_as_they_attend(
    seq_lens: list[int], block_size: int, window: int, qk_norm: bool, num_heads: int, num_kv_heads: int, head_dim: int,
    device: torch.device,
) -> None:  # fmt: skip
    batch = ragged_batch(
        [1] * len(seq_lens), seq_lens, device, block_size=block_size, num_heads=num_heads, num_kv_heads=num_kv_heads,
        head_dim=head_dim,
    )  # fmt: skip
    dtype = batch.query.dtype
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    lengths = torch.tensor(seq_lens, device=device)
    positions = (lengths - 1).clamp(min=0)
    blocks = batch.metadata.block_tables.gather(1, (positions // block_size)[:, None])[:, 0]
    slots = (blocks * block_size + positions % block_size).masked_fill(lengths == 0, -1)
    metadata = dataclasses.replace(batch.metadata, slot_mapping=slots)
    angles = torch.rand(1000, head_dim // 2, device=device) * 6
    norms = torch.rand(2, head_dim, device=device).to(dtype) if qk_norm else (None, None)
    rotary = Rotary(torch.cat((angles.cos(), angles.sin()), 1), *norms, 1e-6)
    qkv = torch.randn(len(seq_lens), (num_heads + 2 * num_kv_heads) * head_dim, device=device).to(dtype)
    caches = [batch.key_cache.clone(), batch.value_cache.clone()]
    expected_caches = [cache.clone() for cache in caches]
    got = TritonOps().attend(qkv, positions, rotary, *caches, metadata, num_heads, 0.2, window)
    expected = reference.attend(qkv, positions, rotary, *expected_caches, metadata, num_heads, 0.2, window)
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
    for cache, expected_cache in zip(caches, expected_caches, strict=True):
        torch.testing.assert_close(cache, expected_cache, equal_nan=True, atol=tolerance, rtol=tolerance)
    assert not arrival_counters(device).any()
