"""The keyed hash that every watermark is made of, in plain Python: what the device computes, for one token at a time.

A mark is decided by 32 bits for each (key, context, token): `token_bits(context_key(key, context), domain, token)`.
Green lists compare them with a threshold, Gumbel-max reads them as the token's noise, SynthID-Text reads one bit a
layer. The same bits come out on every device, rank and batch position, since nothing but integers goes in.

mix, key and bits are those of sampling/noise.py, which defines them; `domain` stands where a position stands there.
A context is folded into 64 bits, two words side by side:

    fold(init):  h = mix(init ^ low32(key));  h = mix(h * 5 + high32(key));  for each token:  h = mix(h * 5 + token)
    context_key = fold(0x13198A2E) | fold(0x03707344) << 32
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

CONTEXT_INIT_LOW = 0x13198A2E
CONTEXT_INIT_HIGH = 0x03707344

# One hash for all schemes, so each has its own domain. Real positions are below 2**31.
GREEN_DOMAIN = 0xFFFFFFFE
GUMBEL_DOMAIN = 0xFFFFFFFD
SYNTHID_DOMAIN = 0xFFFFFFFC

SELF_HASH_MULTIPLIER = 0x9E3779B1

_WORD = 0xFFFFFFFF
_NOISE_INIT_A = 0x243F6A88
_NOISE_INIT_B = 0x85A308D3
_TOKEN_MULTIPLIER = 0x9E3779B1


def secret_to_key(secret: str) -> int:
    """A secret of any length as the 64-bit word that marks are keyed by: the head of its SHA-256."""
    return int.from_bytes(hashlib.sha256(secret.encode()).digest()[:8], "little")


def context_key(key: int, context: Sequence[int]) -> int:
    """64 bits for a key in [0, 2**64) and the tokens before the one to be marked, oldest first."""
    words = (key & _WORD, key >> 32, *context)
    return _fold(words, CONTEXT_INIT_LOW) | _fold(words, CONTEXT_INIT_HIGH) << 32


def token_bits(context: int, domain: int, token_id: int) -> int:
    """32 uniform bits of a token, given a context's key."""
    words = (context & _WORD, context >> 32, domain)
    hashed = mix((token_id * _TOKEN_MULTIPLIER & _WORD) ^ _fold(words, _NOISE_INIT_A))
    return mix(hashed ^ _fold(words, _NOISE_INIT_B))


def self_hash_bits(key: int, context: Sequence[int], token_id: int) -> tuple[int, int]:
    """Green bits of a token whose list depends on itself (arXiv 2301.10226, algorithm 3), and which token decided.

    Each token of the context gives the candidate 32 bits; the smallest, mixed once more, are the candidate's own.
    """
    values = [token_bits(context_key(key, (before,)), GREEN_DOMAIN, token_id) for before in context]
    smallest = min(values)
    return mix(smallest * SELF_HASH_MULTIPLIER & _WORD), context[values.index(smallest)]


def mix(word: int) -> int:
    """The finalizer of MurmurHash3 on a 32-bit word."""
    word ^= word >> 16
    word = word * 0x85EBCA6B & _WORD
    word ^= word >> 13
    word = word * 0xC2B2AE35 & _WORD
    return word ^ word >> 16


def _fold(words: Sequence[int], init: int) -> int:
    hashed = mix(init ^ words[0])
    for word in words[1:]:
        hashed = mix((hashed * 5 + word) & _WORD)
    return hashed
