"""Green lists on the CPU: the part of sampling/torch_watermark.py that goes over the whole vocabulary, in one pass.

The few hashes of a row's context are torch's; colours and the addition are numba's, rows spread over threads.
"""

# pyright: reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false

import numpy as np
from torch import Tensor

from engines.native.kernels.cpu_compile import kernel
from engines.native.kernels.cpu_sampler import share_rows
from engines.native.kernels.cpu_sampler_row import mix, noise_key, random_bits
from engines.native.sampling import torch_watermark
from engines.native.sampling.torch_watermark import MarkedRows
from engines.native.types import GREEN_LIST, GREEN_LIST_SELF
from engines.native.watermark import prf

_u32 = np.uint32
_INIT_A, _INIT_B = np.uint32(0x243F6A88), np.uint32(0x85A308D3)
_DOMAIN = np.int64(prf.GREEN_DOMAIN)
_SELF_HASH_MULTIPLIER = np.uint32(prf.SELF_HASH_MULTIPLIER)


def mark_tokens(
    logits: Tensor,
    token_table: Tensor,
    rows: Tensor,
    lengths: Tensor,
    marked: MarkedRows,
    seeds: Tensor,
    positions: Tensor,
) -> None:
    """As torch_watermark.mark_tokens."""
    for scheme in (GREEN_LIST, GREEN_LIST_SELF):
        green = marked.of(scheme)
        if green is None:
            continue
        is_self = scheme == GREEN_LIST_SELF
        keys = torch_watermark.green_keys(token_table, rows, lengths, green)
        num_keys = green.widths if is_self else green.widths.clamp(max=1)
        thresholds = green.thresholds.where(lengths[green.at] >= green.widths, 0)
        tensors = (logits, green.at, keys, num_keys, thresholds, green.deltas)
        arrays = [tensor.contiguous().numpy() for tensor in tensors]
        share_rows(len(green.schemes), lambda first, step, a=arrays, s=is_self: _green_rows(*a, s, first, step))
    torch_watermark.key_noise(token_table, rows, lengths, marked, seeds, positions)


@kernel("void(f4[:,::1], i8[::1], i8[:,::1], i8[::1], i8[::1], f4[::1], b1, i8, i8)")
def _green_rows(logits, at, keys, num_keys, thresholds, deltas, is_self, first, step):
    smallest = np.empty(logits.shape[1], np.uint32)
    for i in range(first, at.size, step):
        if thresholds[i] == 0:
            continue
        row, delta, threshold = logits[at[i]], deltas[i], thresholds[i]
        for j in range(num_keys[i]):
            key_a, key_b = noise_key(keys[i, j], _DOMAIN, _INIT_A), noise_key(keys[i, j], _DOMAIN, _INIT_B)
            if j == 0:
                for token_id in range(row.size):
                    smallest[token_id] = random_bits(token_id, key_a, key_b)
            else:
                for token_id in range(row.size):
                    smallest[token_id] = min(smallest[token_id], random_bits(token_id, key_a, key_b))
        if is_self:
            for token_id in range(row.size):
                smallest[token_id] = mix(_u32(smallest[token_id] * _SELF_HASH_MULTIPLIER))
        highest = _u32(threshold - 1)
        for token_id in range(row.size):
            row[token_id] += delta if smallest[token_id] <= highest else np.float32(0.0)
