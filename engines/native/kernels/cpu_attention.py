"""Attention over the paged KV cache on CPU: decodes to one kernel, prefill chunks to the other.

Owns the split of a batch and the checks of its tensors.
"""

import torch
from torch import Tensor

from engines.native.kernels.cpu_compile import plain
from engines.native.kernels.cpu_decode_attention import decode_attention
from engines.native.kernels.cpu_ir import LANES
from engines.native.kernels.cpu_prefill_attention import prefill_attention, scratch_bytes
from engines.native.kernels.cpu_team import TEAM
from engines.native.kernels.cpu_tiles import CACHE_KINDS
from engines.native.layers.attention_metadata import AttentionMetadata


def paged_attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int = 0,
) -> Tensor:
    """As reference.paged_attention; q float32, caches float32, bfloat16 or e4m3, all contiguous."""
    tables = metadata.block_tables
    assert plain(torch.float32, q)
    assert key_cache.dtype in CACHE_KINDS
    assert plain(key_cache.dtype, key_cache, value_cache)
    assert plain(torch.int32, tables, metadata.seq_lens, metadata.query_start_loc)
    block_size, num_kv_heads, width = key_cache.shape[1:]
    num_sequences = metadata.seq_lens.shape[0]
    num_decodes = metadata.num_decodes if width % LANES == 0 else 0  # the prefill kernel takes any width
    out = torch.empty_like(q)
    cache = (
        key_cache.data_ptr(),
        value_cache.data_ptr(),
        CACHE_KINDS[key_cache.dtype],
        block_size,
        num_kv_heads,
        q.shape[1] // num_kv_heads,
        width,
        tables.data_ptr(),
        tables.shape[1],
        metadata.seq_lens.data_ptr(),
    )
    if num_decodes > 0:
        decode_attention(TEAM.address, q.data_ptr(), *cache, scale, sliding_window, num_decodes, out.data_ptr())
    if num_sequences > num_decodes:
        num_keys = metadata.max_seq_len
        if sliding_window > 0:
            num_keys = min(num_keys, sliding_window + metadata.max_query_len)
        scratch = torch.empty(scratch_bytes(num_keys, num_kv_heads, width), dtype=torch.uint8)
        prefill_attention(
            TEAM.address,
            q.data_ptr(),
            *cache,
            metadata.query_start_loc.data_ptr(),
            scale,
            sliding_window,
            num_decodes,
            num_sequences,
            scratch.data_ptr(),
            out.data_ptr(),
        )
    return out
