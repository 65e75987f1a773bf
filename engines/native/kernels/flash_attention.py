"""Prefill attention through flash-attn-4 (FlashAttention in CuTe, https://github.com/Dao-AILab/flash-attention).

On an H100 it takes 22 to 44% less time than our Triton kernel for the same chunks; benchmarks/gpu/NOTES.md has the
figures. Decodes stay with ours: its Hopper kernels do not split a sequence's keys. The package compiles a kernel in
about 4 s when it is first called, at start-up, and takes up to 10 s to import: it is used where somebody asks for it.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BLOCK_SIZE = 128  # slots: its key tile, so that a block is one bulk copy
_SMALLEST_CAPABILITY = (9, 0)


def is_available(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the package is here, and serves this GPU, element type and head size."""
    if importlib.util.find_spec("flash_attn") is None or importlib.util.find_spec("flash_attn.cute") is None:
        return False
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < _SMALLEST_CAPABILITY:
        return False
    return dtype in (torch.bfloat16, torch.float16) and head_dim % 8 == 0 and head_dim <= 256


def prefill_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    max_query_len: int,
    scale: float,
    sliding_window: int = 0,
) -> Tensor:
    """Ragged chunks of queries, as triton_attention_prefill.prefill_attention; rows of query that belong to no chunk
    come out unset. Returns [num_tokens, num_heads, head_dim]."""
    window = (sliding_window - 1, 0) if sliding_window else (None, None)
    out = _varlen()(
        query,
        key_cache,
        value_cache,
        cu_seqlens_q=query_start_loc,
        seqused_k=seq_lens,
        max_seqlen_q=max_query_len,
        page_table=block_tables,
        softmax_scale=scale,
        causal=sliding_window == 0,
        window_size=window,
    )
    return out[0] if isinstance(out, tuple) else out


@functools.cache
def _varlen() -> Callable[..., Any]:
    # What it compiles is kept on disk, for the next start.
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    # Its compiler tells of its own insides, once a kernel, in words that no operator can act on.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"cutlass\.")
    from flash_attn.cute.interface import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    return flash_attn_varlen_func
