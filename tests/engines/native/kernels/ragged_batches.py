"""Random ragged batches over a paged cache, for tests of attention kernels."""

import dataclasses

import torch
from torch import Tensor

from engines.native.layers.attention_metadata import AttentionMetadata


@dataclasses.dataclass(frozen=True, slots=True)
class CachedBatch:
    """Arguments of paged_attention; cache rows that belong to no sequence are NaN."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    metadata: AttentionMetadata

    def only(self, sequence: int) -> "CachedBatch":
        """The same cache with one of the sequences alone."""
        start, end = self.metadata.query_start_loc[sequence : sequence + 2].tolist()
        metadata = dataclasses.replace(
            self.metadata,
            query_start_loc=torch.tensor([0, end - start], dtype=torch.int32),
            seq_lens=self.metadata.seq_lens[sequence : sequence + 1],
            block_tables=self.metadata.block_tables[sequence : sequence + 1],
            slot_mapping=self.metadata.slot_mapping[start:end],
            num_decodes=int(sequence < self.metadata.num_decodes),
        )
        return dataclasses.replace(self, query=self.query[start:end], metadata=metadata)


def cached_batch(
    lengths: list[tuple[int, int]],
    *,
    block_size: int = 16,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 64,
    cache_dtype: torch.dtype = torch.float32,
) -> CachedBatch:
    """Sequences of (query length, tokens in the cache), decodes first, their blocks dealt in random order."""
    generator = torch.Generator().manual_seed(0)
    blocks_of = [-(-seq_len // block_size) for _, seq_len in lengths]
    order = torch.randperm(sum(blocks_of) + 2, generator=generator).int()
    tables = torch.full((len(lengths), max(blocks_of) + 1), 2**30, dtype=torch.int32)
    caches = [torch.full((len(order) * block_size, num_kv_heads, head_dim), float("nan")) for _ in range(2)]
    for row, (count, (_, seq_len)) in enumerate(zip(blocks_of, lengths, strict=True)):
        tables[row, :count], order = order[:count], order[count:]
        slots = tables[row, :count, None].long() * block_size + torch.arange(block_size)
        for cache in caches:
            cache[slots.flatten()[:seq_len]] = torch.randn(seq_len, num_kv_heads, head_dim, generator=generator)
    query_lens = [query_len for query_len, _ in lengths]
    starts = torch.tensor([0, *query_lens]).cumsum(0).int()
    query = torch.randn(int(starts[-1]), num_heads, head_dim, generator=generator)
    metadata = AttentionMetadata(
        query_start_loc=starts,
        seq_lens=torch.tensor([seq_len for _, seq_len in lengths], dtype=torch.int32),
        block_tables=tables,
        slot_mapping=torch.full((len(query),), -1),
        num_decodes=next((i for i, length in enumerate(query_lens) if length != 1), len(query_lens)),
        max_query_len=max(query_lens),
        max_seq_len=max(seq_len for _, seq_len in lengths),
    )
    shape = (-1, block_size, num_kv_heads, head_dim)
    key_cache, value_cache = (cache.view(shape).to(cache_dtype) for cache in caches)
    return CachedBatch(query, key_cache, value_cache, metadata)
