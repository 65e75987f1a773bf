"""The sampler's core on the CPU: one token per row of logits, rows spread over threads.

Owns the CPU twins of sampling/torch_core.py, where the meaning of every argument is written down. What happens within a
row is cpu_sampler_row.py's. It knows nothing of requests, penalties or log-probabilities.
"""

# pyright: reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor

from engines.native.kernels.cpu_compile import kernel
from engines.native.kernels.cpu_sampler_row import mask_filtered_row, mask_typical_row, sample_row
from engines.native.kernels.cpu_team import TEAM
from engines.native.sampling.torch_core import banned_floor


def greedy(logits: Tensor) -> Tensor:
    """As torch_core.greedy."""
    zeros = torch.zeros(logits.shape[0], dtype=torch.int64)
    return sample_core(logits, zeros.float(), None, None, None, zeros, zeros)


def sample_core(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """As torch_core.sample_core; all tensors contiguous."""
    batch = logits.shape[0]
    token_ids = torch.empty(batch, dtype=torch.int64)
    arrays = (
        logits.numpy(),
        temperature.numpy(),
        np.zeros(batch, np.int64) if top_k is None else top_k.numpy(),
        np.ones(batch, np.float32) if top_p is None else top_p.numpy(),
        np.zeros(batch, np.float32) if min_p is None else min_p.numpy(),
        seeds.numpy(),
        positions.numpy(),
        token_ids.numpy(),
    )
    share_rows(batch, lambda first, step: _sample_rows(*arrays, first, step))
    return token_ids


def mask_typical(logits: Tensor, at: Tensor, temperature: Tensor, min_p: Tensor, typical_p: Tensor) -> None:
    """As torch_core.mask_typical; all tensors contiguous."""
    arrays = (logits.numpy(), at.numpy(), temperature.numpy(), min_p.numpy(), typical_p.numpy())
    share_rows(at.shape[0], lambda first, step: _mask_typical_rows(*arrays, first, step))


def mask_tokens(logits: Tensor, at: Tensor, bits: Tensor) -> None:
    """As torch_core.mask_tokens, float32 alone; all tensors contiguous."""
    floor = np.float32(banned_floor(logits.dtype))
    arrays = (logits.numpy(), at.numpy(), bits.numpy(), floor)
    share_rows(at.shape[0], lambda first, step: _mask_token_rows(*arrays, first, step))


def mask_filtered(logits: Tensor, at: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> None:
    """As torch_core.mask_filtered, all tensors contiguous; what is too deep for any noise is masked as well."""
    arrays = [tensor.numpy() for tensor in (logits, at, temperature, top_k, top_p, min_p)]
    share_rows(at.shape[0], lambda first, step: _mask_filtered_rows(*arrays, first, step))


def share_rows(batch: int, run: Callable[[int, int], None]) -> None:
    """run(first, step) on as many threads as torch uses, the caller's among them.

    Threads of our own rather than numba's parallel loops: those double the time to compile, and their default backend
    ends the process when two threads call at once.
    """
    step = min(TEAM.num_threads, batch)
    others = [_threads().submit(run, first, step) for first in range(1, step)]
    if batch:
        run(0, step)
    for other in others:
        other.result()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="headrace-sampler")


@kernel("void(f4[:,::1], f4[::1], i8[::1], f4[::1], f4[::1], i8[::1], i8[::1], i8[::1], i8, i8)")
def _sample_rows(logits, temperature, top_k, top_p, min_p, seeds, positions, token_ids, first, step):
    batch, vocab = logits.shape
    depths, ids, weights = np.empty(vocab, np.float32), np.empty(vocab, np.int32), np.empty(vocab, np.float32)
    for i in range(first, batch, step):
        token_ids[i] = sample_row(
            logits[i], temperature[i], top_k[i], top_p[i], min_p[i], seeds[i], positions[i], depths, ids, weights
        )


@kernel("void(f4[:,::1], i8[::1], f4[::1], f4[::1], f4[::1], i8, i8)")
def _mask_typical_rows(logits, at, temperature, min_p, typical_p, first, step):
    vocab = logits.shape[1]
    depths, ids, weights = np.empty(vocab, np.float32), np.empty(vocab, np.int32), np.empty(vocab, np.float32)
    distances = np.empty(vocab, np.float32)
    for i in range(first, at.size, step):
        mask_typical_row(logits[at[i]], temperature[i], min_p[i], typical_p[i], depths, ids, weights, distances)


@kernel("void(f4[:,::1], i8[::1], i4[:,::1], f4, i8, i8)")
def _mask_token_rows(logits, at, bits, floor, first, step):
    vocab = logits.shape[1]
    for i in range(first, at.size, step):
        row, words = logits[at[i]], bits[i]
        for token in range(vocab):
            allowed = (words[token >> 5] >> np.int32(token & 31)) & np.int32(1)
            row[token] = max(row[token], floor) if allowed else np.float32(-np.inf)


@kernel("void(f4[:,::1], i8[::1], f4[::1], i8[::1], f4[::1], f4[::1], i8, i8)")
def _mask_filtered_rows(logits, at, temperature, top_k, top_p, min_p, first, step):
    vocab = logits.shape[1]
    depths, ids, weights = np.empty(vocab, np.float32), np.empty(vocab, np.int32), np.empty(vocab, np.float32)
    for i in range(first, at.size, step):
        mask_filtered_row(logits[at[i]], temperature[i], top_k[i], top_p[i], min_p[i], depths, ids, weights)
