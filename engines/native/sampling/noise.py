"""Reproducible Gumbel noise: a pure function of (seed, position, token id), the same on every device.

argmax(logits / temperature + gumbel) is an exact draw from softmax(logits / temperature) (the Gumbel-max trick,
Gumbel 1954). Keying the noise by request seed, position in the sequence and token id, instead of drawing it from a
generator, gives a seeded request the same tokens whatever shares its batch, and needs no generator state anywhere.

This module owns the definition of the noise. The fused CUDA sampler (kernels/triton_sampler.py) computes the same
bits; its floats agree to the rounding of the logarithm. It knows nothing of logits, temperatures or batches.

The hash, in unsigned 32-bit arithmetic that wraps; mix is the finalizer of MurmurHash3, a bijection on words:

    mix(h):   h ^= h >> 16;  h *= 0x85EBCA6B;  h ^= h >> 13;  h *= 0xC2B2AE35;  h ^= h >> 16
    key(s, p, init):  h = mix(init ^ low32(s));  h = mix(h * 5 + high32(s));  h = mix(h * 5 + low32(p))
    a = key(seed, position, 0x243F6A88)          b = key(seed, position, 0x85A308D3)
    bits = mix(mix((token * 0x9E3779B1) ^ a) ^ b)

    u = min((float32(bits) + 0.5) * 2**-32, 1 - 2**-24)          gumbel = -log(-log1p(-u))

The large, winning values come from u near 0, where float32 is dense, so all 32 bits shape the tail. The noise lies
in [-2.82, 22.88].
"""

import torch
from torch import Tensor

MIX_MULTIPLIER_1 = 0x85EBCA6B
MIX_MULTIPLIER_2 = 0xC2B2AE35
TOKEN_MULTIPLIER = 0x9E3779B1
KEY_INIT_A = 0x243F6A88
KEY_INIT_B = 0x85A308D3

_WORD = 0xFFFFFFFF


def noise_keys(seeds: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The two 32-bit words (a, b) that key one row's noise.

    seeds, positions: int64 of broadcastable shapes. Returns int64 tensors in [0, 2**32).
    """
    seeds, positions = seeds.long(), positions.long()
    words = (seeds & _WORD, (seeds >> 32) & _WORD, positions & _WORD)
    return _absorb(words, KEY_INIT_A), _absorb(words, KEY_INIT_B)


def random_bits(seeds: Tensor, positions: Tensor, token_ids: Tensor) -> Tensor:
    """32 uniform bits for each (seed, position, token id), as int64 in [0, 2**32).

    All arguments are int64 and broadcast, e.g. seeds and positions [rows, 1], token_ids [vocab].
    """
    key_a, key_b = noise_keys(seeds, positions)
    # int32 wraps as uint32 does and moves half the bytes of int64: the vocabulary-wide part is worth that.
    hashed = _as_int32((token_ids.long() * TOKEN_MULTIPLIER) & _WORD) ^ _as_int32(key_a)
    hashed = _mix_int32_(hashed)
    hashed = hashed ^ _as_int32(key_b)
    return _mix_int32_(hashed).long() & _WORD


def gumbel_noise(seeds: Tensor, positions: Tensor, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise for each (seed, position, token id): int64 arguments that broadcast, float32 result."""
    uniform = random_bits(seeds, positions, token_ids).float().add_(0.5).mul_(2.0**-32).clamp_(max=1.0 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _absorb(words: tuple[Tensor, Tensor, Tensor], init: int) -> Tensor:
    hashed = mix(words[0] ^ init)
    for word in words[1:]:
        hashed = mix((hashed * 5 + word) & _WORD)
    return hashed


def mix(hashed: Tensor) -> Tensor:
    """mix() on int64 tensors that hold 32-bit words."""
    hashed = hashed ^ (hashed >> 16)
    hashed = (hashed * MIX_MULTIPLIER_1) & _WORD
    hashed = hashed ^ (hashed >> 13)
    hashed = (hashed * MIX_MULTIPLIER_2) & _WORD
    return hashed ^ (hashed >> 16)


def _mix_int32_(hashed: Tensor) -> Tensor:
    """mix() in place on int32 tensors. Their >> carries the sign along; the masks make it the unsigned shift."""
    hashed ^= (hashed >> 16) & 0xFFFF
    hashed *= _signed(MIX_MULTIPLIER_1)
    hashed ^= (hashed >> 13) & 0x7FFFF
    hashed *= _signed(MIX_MULTIPLIER_2)
    hashed ^= (hashed >> 16) & 0xFFFF
    return hashed


def _as_int32(words: Tensor) -> Tensor:
    """int64 in [0, 2**32) -> the int32 with the same bits."""
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word
