"""Owns the KV cache's tensors: how many bytes a block takes, how many blocks fit, one view per layer."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engines.errors import EngineUnavailable

_UNITS = {"": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_CPU_DEFAULT_BYTES = 2 * 2**30
_CPU_SHARE_OF_FREE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCacheShape:
    """What one token's keys and values take."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype

    @property
    def block_bytes(self) -> int:
        return 2 * self.num_layers * self.block_size * self.num_kv_heads * self.head_dim * self.dtype.itemsize


class KVCache:
    """Keys and values of every layer; `layers[i]` is (key_cache, value_cache), each
    [num_blocks, block_size, num_kv_heads, head_dim]."""

    def __init__(self, shape: KVCacheShape, num_blocks: int, device: torch.device) -> None:
        self.shape = shape
        self.num_blocks = num_blocks
        size = (shape.num_layers, 2, num_blocks, shape.block_size, shape.num_kv_heads, shape.head_dim)
        # Zeros, not garbage: masked positions of a block are multiplied by a probability of 0, and 0 * NaN is NaN.
        if device.type == "cpu":
            # numpy asks the system for zeroed pages, which cost time and memory only once they are used.
            pages = np.zeros(num_blocks * shape.block_bytes, dtype=np.uint8)
            storage = torch.from_numpy(pages).view(shape.dtype).view(size)
        else:
            storage = torch.zeros(size, dtype=shape.dtype, device=device)
        self.layers: list[tuple[Tensor, Tensor]] = [(layer[0], layer[1]) for layer in storage]


def parse_bytes(text: str) -> int:
    """`512MiB`, `2GiB`, `1.5GB` or a plain number of bytes. Raises EngineUnavailable naming kv_cache_memory."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _UNITS:
        raise EngineUnavailable(f"kv_cache_memory: '{text}' is not a size; write it like 2GiB or 512MiB.")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def cpu_budget_bytes() -> int:
    """A default that leaves the machine usable: 2 GiB, or a quarter of the memory that is free where that is less."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(_CPU_DEFAULT_BYTES, int(free * _CPU_SHARE_OF_FREE))


def blocks_for(budget_bytes: int, shape: KVCacheShape, max_useful_tokens: int) -> int:
    """How many blocks to take: what the budget holds, but no more than all rows at full length could use."""
    useful = -(-max_useful_tokens // shape.block_size)
    return min(budget_bytes // shape.block_bytes, useful)


def fit_max_model_len(asked: int | None, models_own: int, num_blocks: int, shape: KVCacheShape) -> int:
    """The context length to serve: one sequence of it must always fit the cache, or it could never finish.

    A length that was asked for and does not fit is an error; the model's own is shortened to what fits.
    """
    capacity = num_blocks * shape.block_size
    if asked is not None and asked > capacity:
        raise EngineUnavailable(
            f"max_model_len is {asked} tokens, but the KV cache holds {capacity}: raise kv_cache_memory to at least "
            f"{-(-asked // shape.block_size) * shape.block_bytes / 2**20:.0f}MiB (on GPU gpu_memory_utilization), "
            "or lower max_model_len."
        )
    if capacity < 1:
        raise EngineUnavailable(
            f"There is no memory for a single KV block of {shape.block_bytes / 2**20:.1f} MiB: raise kv_cache_memory "
            "or gpu_memory_utilization."
        )
    return min(asked or models_own, capacity)
