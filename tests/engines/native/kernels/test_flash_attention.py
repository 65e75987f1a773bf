"""flash-attn's prefill beside decodes, against plain PyTorch, and when it is chosen."""

from __future__ import annotations

import pytest
import torch

from config.engines import NativeSettings
from engines.errors import EngineUnavailable
from engines.native.kernels import choose_kernels, flash_attention, reference
from engines.native.kernels import triton_attention as attention
from engines.native.layers.attention_metadata import AttentionMetadata

on_gpu = pytest.mark.skipif(
    not flash_attention.is_available(torch.bfloat16, 128), reason="needs flash-attn-4 and a Hopper GPU"
)


def ragged(sequences: list[tuple[int, int]], num_decodes: int, block_size: int, device: str):
    """sequences: (query tokens, all tokens)."""
    torch.manual_seed(len(sequences))
    table_width = max(-(-total // block_size) for _, total in sequences)
    num_blocks = table_width * len(sequences)
    tables = torch.randperm(num_blocks, dtype=torch.int32).view(len(sequences), table_width)
    starts = torch.tensor([0, *torch.tensor([count for count, _ in sequences]).cumsum(0)], dtype=torch.int32)
    q = torch.randn(int(starts[-1]), 8, 128, dtype=torch.bfloat16)
    caches = torch.randn(2, num_blocks, block_size, 2, 128, dtype=torch.bfloat16)
    metadata = AttentionMetadata(
        query_start_loc=starts.to(device),
        seq_lens=torch.tensor([total for _, total in sequences], dtype=torch.int32, device=device),
        block_tables=tables.to(device),
        slot_mapping=torch.zeros(len(q), dtype=torch.int64, device=device),
        num_decodes=num_decodes,
        max_query_len=max(count for count, _ in sequences),
        max_seq_len=max(total for _, total in sequences),
    )
    return q.to(device), *caches.to(device), metadata


@on_gpu
@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("block_size", [64, 128])
@pytest.mark.parametrize("window", [0, 100])
@pytest.mark.parametrize(
    ("sequences", "num_decodes"),
    [([(300, 300), (1, 1), (17, 900)], 0), ([(1, 500), (1, 3), (1, 129), (250, 700), (40, 40)], 3), ([(1, 9)], 1)],
    ids=["chunks", "decodes and chunks", "decode"],
)
def test_chunks_and_decodes_match_the_reference(sequences, num_decodes, window, block_size):
    q, keys, values, metadata = ragged(sequences, num_decodes, block_size, "cuda")
    ours = attention.paged_attention(q, keys, values, metadata, 128**-0.5, window, flash=True)
    wanted = reference.paged_attention(q.float(), keys.float(), values.float(), metadata, 128**-0.5, window)
    torch.testing.assert_close(ours.float(), wanted, atol=2e-2, rtol=2e-2)


def test_asking_for_it_without_it_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(flash_attention, "is_available", lambda *_: False)
    section = NativeSettings(attention_backend="flash-attn")

    class Config:
        dtype, head_dim, num_kv_heads = "bfloat16", 128, 8

    pytest.importorskip("triton")
    with pytest.raises(EngineUnavailable, match="flash-attn-4"):
        choose_kernels(section, Config(), torch.device("cuda"))  # type: ignore[arg-type]


def test_an_fp8_cache_is_not_for_it(monkeypatch):
    monkeypatch.setattr(flash_attention, "is_available", lambda *_: True)

    class Config:
        dtype, head_dim, num_kv_heads = "bfloat16", 128, 8

    pytest.importorskip("triton")
    section = NativeSettings(attention_backend="flash-attn", kv_cache_dtype="fp8")
    with pytest.raises(EngineUnavailable, match="fp8"):
        choose_kernels(section, Config(), torch.device("cuda"))  # type: ignore[arg-type]
    wanted = NativeSettings(attention_backend="flash-attn")
    assert choose_kernels(wanted, Config(), torch.device("cuda")).attention_backend == "flash-attn"  # type: ignore[arg-type]
