"""Paged attention in Triton for a ragged batch: decodes to the split-KV kernel, chunks to the prefill kernel.

Both read the paged cache [num_blocks, block_size, num_kv_heads, head_dim] through block tables, for any block size,
without host synchronisation, so both can be captured in a CUDA graph. The plain PyTorch twin is
reference.paged_attention.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from engines.native.kernels import flash_attention
from engines.native.kernels.triton_attention_decode import decode_attention
from engines.native.kernels.triton_attention_prefill import prefill_attention
from engines.native.layers.attention_metadata import AttentionMetadata


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int = 0,
    *,
    split_tokens: int = 0,
    flash: bool = False,
    pdl: bool = False,
) -> Tensor:
    """Causal attention of each query token over its sequence's cached keys and values.

    query [num_tokens, num_heads, head_dim]; caches [num_blocks, block_size, num_kv_heads, head_dim], as wide or e4m3;
    the new tokens' keys and values are already in the cache. Decodes come first (metadata.num_decodes), then prefill
    chunks. sliding_window > 0 limits a token to the last that many positions, itself included. split_tokens > 0 cuts
    decodes at fixed lengths, so that a sequence's sums do not depend on its batch (a multiple of the key tile). flash:
    chunks go to flash-attn instead of the prefill kernel.

    Decodes wait for memory and chunks for the matrix units, so that the two kernels run side by side.
    Returns [num_tokens, num_heads, head_dim]; rows of padding sequences (length 0) are zero.
    """
    num_decodes = metadata.num_decodes
    has_chunks = metadata.seq_lens.shape[0] > num_decodes
    own_chunks = has_chunks and not flash
    block_tables, seq_lens, starts = (
        each[num_decodes:] for each in (metadata.block_tables, metadata.seq_lens, metadata.query_start_loc)
    )
    if flash and has_chunks:
        out = flash_attention.prefill_attention(
            query, key_cache, value_cache, block_tables, seq_lens, starts, metadata.max_query_len, scale, sliding_window
        )
    else:
        out = torch.empty_like(query)
    compute_chunks = functools.partial(
        prefill_attention,
        *(query, key_cache, value_cache, out, block_tables, seq_lens, starts, query.shape[0] - num_decodes, scale),
        *(sliding_window,),
    )
    compute_decodes = functools.partial(
        decode_attention,
        *(query, key_cache, value_cache, out, metadata.block_tables, metadata.seq_lens[:num_decodes]),
        *(metadata.max_seq_len, scale, sliding_window),
        split_tokens=split_tokens,
    )
    if num_decodes and own_chunks and query.is_cuda:
        _side_by_side(functools.partial(compute_chunks, pdl=pdl), compute_decodes, query.device)
        return out
    if num_decodes:
        compute_decodes(pdl=pdl)
    if own_chunks:
        compute_chunks(pdl=pdl)
    return out


def _side_by_side(here: Callable[[], None], beside: Callable[[], None], device: torch.device) -> None:
    """Launch both so that they run beside each other. What the current stream gets next waits for both.

    What stays in the current stream may start while its predecessor drains and the other may not, so that chunks, whose
    blocks take the longest, stay: with 56 decodes and 448 tokens 46 us instead of 55.
    """
    current, side = torch.cuda.current_stream(device), _side_stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        beside()
    here()
    current.wait_stream(side)


@functools.lru_cache(maxsize=16)
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=-1)
