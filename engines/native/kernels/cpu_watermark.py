"""Watermarks on the CPU: the parts of sampling/torch_watermark.py that go over the whole vocabulary, rows over threads.

The few hashes of a row's context are torch's; colours, the addition and tournaments are numba's.
"""

# pyright: reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false

import numpy as np
from torch import Tensor

from engines.native.kernels.cpu_compile import kernel
from engines.native.kernels.cpu_sampler import share_rows
from engines.native.kernels.cpu_sampler_row import exp_of_minus, mix, noise_key, random_bits, row_max
from engines.native.sampling import torch_watermark
from engines.native.sampling.torch_watermark import MASS_UNIT, ROUND_LAYERS, VANISHED, MarkedRows
from engines.native.types import GREEN_LIST, GREEN_LIST_SELF
from engines.native.watermark import prf

_u32 = np.uint32
_INIT_A, _INIT_B = np.uint32(0x243F6A88), np.uint32(0x85A308D3)
_DOMAIN, _SYNTHID_DOMAIN = np.int64(prf.GREEN_DOMAIN), np.int64(prf.SYNTHID_DOMAIN)
_ROUNDS = 4  # that 32 bits have
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


def compete(
    logits: Tensor, at: Tensor, keys: Tensor, is_marked: Tensor, temperature: Tensor, depths: Tensor, num_layers: int
) -> None:
    """As torch_watermark.compete."""
    del num_layers  # each row plays its own depth
    arrays = [tensor.contiguous().numpy() for tensor in (logits, at, keys, is_marked, temperature, depths)]
    share_rows(at.shape[0], lambda first, step: _compete_rows(*arrays, first, step))


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


@kernel("void(f4[:,::1], i8[::1], i8[::1], b1[::1], f4[::1], i8[::1], i8, i8)")
def _compete_rows(logits, at, keys, is_marked, temperature, depths, first, step):
    vocab = logits.shape[1]
    bits, masses = np.empty(vocab, np.uint32), np.empty(vocab, np.float32)
    classes = 1 << ROUND_LAYERS
    sums, growth = np.empty(classes, np.int64), np.empty((_ROUNDS, classes), np.float32)
    shares, factors = np.empty(classes, np.float64), np.empty(classes, np.float64)
    low_bits = np.uint32(classes - 1)
    for i in range(first, at.size, step):
        if not is_marked[i]:
            continue
        row = logits[at[i]]
        largest = max(row_max(row), np.float32(-3.4028235e38))
        key_a = noise_key(keys[i], _SYNTHID_DOMAIN, _INIT_A)
        key_b = noise_key(keys[i], _SYNTHID_DOMAIN, _INIT_B)
        for token_id in range(vocab):
            bits[token_id] = random_bits(token_id, key_a, key_b)
            # exp_of_minus stops falling at 87, which in units of a mass is nothing as well
            masses[token_id] = exp_of_minus((largest - row[token_id]) / temperature[i])
        rounds = (depths[i] + ROUND_LAYERS - 1) // ROUND_LAYERS
        for played in range(rounds):
            shift = np.uint32(played * ROUND_LAYERS)
            sums[:] = 0
            for token_id in range(vocab):
                mass = np.float64(masses[token_id]) * MASS_UNIT
                sums[np.int64((bits[token_id] >> shift) & low_bits)] += np.int64(mass + 0.5)
            layers = min(depths[i] - played * ROUND_LAYERS, ROUND_LAYERS)
            total = max(np.float64(sums.sum()), 1.0)
            for c in range(classes):
                shares[c], factors[c] = sums[c] / total, 1.0
            for layer in range(layers):
                ones = 0.0
                for c in range(classes):
                    ones += shares[c] * ((c >> layer) & 1)
                for c in range(classes):
                    factor = 1.0 + ((c >> layer) & 1) - ones
                    shares[c] *= factor
                    factors[c] *= factor
            for c in range(classes):
                growth[played, c] = np.float32(np.log(max(factors[c], VANISHED)))
            for token_id in range(vocab):
                masses[token_id] *= np.float32(factors[np.int64((bits[token_id] >> shift) & low_bits)])
        for token_id in range(vocab):
            grown = np.float32(0.0)
            for played in range(rounds):
                grown += growth[played, np.int64((bits[token_id] >> np.uint32(played * ROUND_LAYERS)) & low_bits)]
            row[token_id] += grown * temperature[i]
