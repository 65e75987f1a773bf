"""Paged attention: decode batches and prefill chunks, against torch's SDPA on dense copies of the same lengths."""

import dataclasses
import functools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.kernels import Built, Case
from engines.native.kernels.triton_attention_decode import decode_attention
from engines.native.kernels.triton_attention_prefill import prefill_attention
from engines.native.kernels.triton_attention_tiles import TileConfig

HEAD_DIM = 128
DECODES = [
    (1, 300),
    (1, 1000),
    (1, 16000),
    (4, 1000),
    (8, 640),
    (16, 640),
    (32, 640),
    (64, 1000),
    (256, 1150),
    (512, 760),
]
SPLITS = {1: (4, 8, 16, 32), 4: (6, 12, 16), 8: (2, 4, 6, 8), 16: (2, 3, 4), 32: (1, 2), 64: (1, 2)}
PREFILLS = {"8x1024": ([1024] * 8, [0] * 8), "1x8192": ([8192], [0]), "512 after 6k": ([512], [6144]),
            "2048 after 6k": ([2048], [6144])}  # fmt: skip
DECODE_CONFIGS = [
    TileConfig(16, 64, 4, 3),
    TileConfig(16, 64, 4, 2),
    TileConfig(16, 32, 4, 4),
    TileConfig(16, 32, 2, 4),
    TileConfig(16, 64, 2, 3),
]
PREFILL_CONFIGS = [
    TileConfig(128, 64, 8, 3),
    TileConfig(128, 128, 8, 2),
    TileConfig(64, 64, 4, 2),
    TileConfig(64, 32, 4, 3),
    TileConfig(128, 32, 8, 4),
]


@dataclasses.dataclass(frozen=True, slots=True)
class Paged:
    query: Tensor
    out: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_tables: Tensor
    seq_lens: Tensor
    query_start_loc: Tensor


def _paged(query_lens: list[int], seq_lens: list[int], heads: int, kv_heads: int, block_size: int) -> Paged:
    device = torch.device("cuda")
    counts = [-(-length // block_size) for length in seq_lens]
    order = torch.randperm(sum(counts), device=device).int()
    tables = torch.zeros(len(seq_lens), max(counts), dtype=torch.int32, device=device)
    for row, blocks in enumerate(order.split(counts)):
        tables[row, : len(blocks)] = blocks
    cache_shape = (sum(counts), block_size, kv_heads, HEAD_DIM)
    caches = [torch.randn(cache_shape, device=device, dtype=torch.bfloat16) for _ in range(2)]
    query = torch.randn(sum(query_lens), heads, HEAD_DIM, device=device, dtype=torch.bfloat16)
    starts = torch.tensor([0, *query_lens], device=device).cumsum(0).int()
    lengths = torch.tensor(seq_lens, dtype=torch.int32, device=device)
    out = torch.full_like(query, float("nan"))
    return Paged(query, out, caches[0], caches[1], tables, lengths, starts)


def _dense_decode(paged: Paged, length: int) -> Tensor:
    """Float32 attention of the last sequence, the longest."""
    keys, values = (
        cache[paged.block_tables[-1].long()].flatten(0, 1)[:length].float().transpose(0, 1)
        for cache in (paged.key_cache, paged.value_cache)
    )
    group = paged.query.shape[1] // keys.shape[0]
    query = paged.query[-1].float()[:, None]
    keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
    return functional.scaled_dot_product_attention(query, keys, values)[:, 0]


def _decode(lengths: list[int], heads: int, block_size: int, config: TileConfig, splits: int, pdl: bool,
            warm: bool) -> Built:  # fmt: skip
    cache_bytes = sum(lengths) * 8 * HEAD_DIM * 4
    copies = 1 if warm else max(1, min(8, 150_000_000 // cache_bytes))
    batches = [_paged([1] * len(lengths), lengths, heads, 8, block_size) for _ in range(copies)]

    def run(paged: Paged) -> Tensor:
        decode_attention(
            paged.query, paged.key_cache, paged.value_cache, paged.out, paged.block_tables, paged.seq_lens, 16384,
            HEAD_DIM**-0.5, num_splits=splits, pdl=pdl, config=config,
        )  # fmt: skip
        return paged.out[-1]

    return Built([functools.partial(run, paged) for paged in batches], lambda: _dense_decode(batches[0], lengths[-1]))


def _prefill(queries: list[int], contexts: list[int], heads: int, block_size: int, config: TileConfig,
             _warm: bool) -> Built:  # fmt: skip
    seq_lens = [query + context for query, context in zip(queries, contexts, strict=True)]
    paged = _paged(queries, seq_lens, heads, 8, block_size)

    def run() -> Tensor:
        prefill_attention(
            paged.query, paged.key_cache, paged.value_cache, paged.out, paged.block_tables, paged.seq_lens,
            paged.query_start_loc, sum(queries), HEAD_DIM**-0.5, config=config,
        )  # fmt: skip
        return paged.out[-1]

    return Built([run], lambda: _dense_decode(paged, seq_lens[-1]))


def _sdpa(count: int, query_len: int, seq_len: int, heads: int, _warm: bool) -> Built:
    query = torch.randn(count, heads, query_len, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    keys, values = torch.randn(2, count, 8, seq_len, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    causal = query_len > 1
    call = functools.partial(
        functional.scaled_dot_product_attention, query, keys, values, is_causal=causal, enable_gqa=True
    )
    return Built([call])


def _ragged(batch: int, mean: int) -> list[int]:
    return [mean + (37 * i) % 400 - 200 if batch > 8 else mean for i in range(batch)]


def cases() -> Iterator[Case]:
    for heads in (32, 16):
        for batch, mean in DECODES if heads == 32 else [(1, 300), (8, 640), (32, 640)]:
            lengths = _ragged(batch, mean)
            num_bytes, flops = 4096.0 * sum(lengths), 4.0 * heads * HEAD_DIM * sum(lengths)

            def decode(config: TileConfig, block_size: int, splits: int = 0, pdl: bool = False,
                       lengths=lengths, heads=heads, batch=batch, mean=mean, num_bytes=num_bytes,
                       flops=flops) -> Case:  # fmt: skip
                variant = f"t{config.key_rows}w{config.num_warps}s{config.num_stages}/b{block_size}"
                variant += (f"/x{splits}" if splits else "") + ("+pdl" if pdl else "")
                return Case("attention", "decode", f"{heads}h B{batch} x {mean}", variant, num_bytes, flops,
                            functools.partial(_decode, lengths, heads, block_size, config, splits, pdl),
                            f"decode {heads} {variant}", launches=16)  # fmt: skip

            for config in DECODE_CONFIGS:
                yield decode(config, 64)
            for block_size in (16, 256):
                yield decode(DECODE_CONFIGS[0], block_size)
            for splits in SPLITS.get(batch, ()):
                yield decode(DECODE_CONFIGS[0], 64, splits)
            yield decode(DECODE_CONFIGS[0], 64, 0, True)
    for heads in (32, 16):
        for name, (queries, contexts) in PREFILLS.items():
            pairs = sum(q * c + q * (q + 1) / 2 for q, c in zip(queries, contexts, strict=True))
            flops = 4.0 * heads * HEAD_DIM * pairs
            shape = f"{heads}h {name}"
            for config in PREFILL_CONFIGS if heads == 32 else PREFILL_CONFIGS[:3]:
                for block_size in (16, 128) if config is PREFILL_CONFIGS[0] else (128,):
                    variant = f"{config.query_rows}x{config.key_rows}w{config.num_warps}s{config.num_stages}"
                    yield Case("attention", "prefill", shape, f"{variant}/b{block_size}", 0.0, flops,
                               functools.partial(_prefill, queries, contexts, heads, block_size, config),
                               f"prefill {heads} {variant}/{block_size}", launches=4)  # fmt: skip
            if not any(contexts):
                yield Case("attention", "prefill", shape, "sdpa", 0.0, flops,
                           functools.partial(_sdpa, len(queries), queries[0], queries[0], heads),
                           launches=4)  # fmt: skip
