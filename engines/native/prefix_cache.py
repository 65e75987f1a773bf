"""Which blocks a sequence can share: finds its beginning among the pool's full blocks, and makes its own findable.

A full block is known by a hash over its parent's hash and its token ids, so that equal hashes mean equal prefixes.
Each sequence keeps its own chain of them, made as far as it was needed. Takes and gives back no blocks.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Ordered
from hashlib import blake2b

from engines.native.block_pool import BlockHash, BlockPool
from engines.native.sequence import Sequence


def hash_block(parent: BlockHash, token_ids: Ordered[int]) -> BlockHash:
    """Chain one full block onto its parent's hash; the first block's parent is the salt's hash, see `root_hash`."""
    return blake2b(parent + array("q", token_ids).tobytes(), digest_size=16).digest()


def root_hash(salt: str) -> BlockHash:
    """Where a chain begins: prefixes are only shared between requests of one salt."""
    return blake2b(salt.encode(), digest_size=16).digest()


class PrefixCache:
    """Over one pool's full blocks. Finds and remembers nothing where that pool does not cache."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._block_size = pool.block_size

    def find(self, sequence: Sequence) -> list[int]:
        """The longest chain of known blocks that leaves at least one token to compute."""
        if not self._pool.caching or sequence.needs_every_token:
            return []
        self._hash_blocks(sequence, len(sequence.token_ids) // self._block_size)
        hits: list[int] = []
        for block_hash in sequence.block_hashes[: (len(sequence.token_ids) - 1) // self._block_size]:
            block = self._pool.find(block_hash)
            if block is None:
                break
            hits.append(block)
        return hits

    def remember(self, sequence: Sequence) -> None:
        """Make a sequence's full blocks findable as far as they are computed and their tokens known on the host."""
        known, computed = len(sequence.token_ids), sequence.num_computed_tokens
        full = (known if known < computed else computed) // self._block_size  # once per token: `min` is slower
        if sequence.num_remembered_blocks >= full or not self._pool.caching or sequence.row < 0:
            return
        self._hash_blocks(sequence, full)
        for position in range(sequence.num_remembered_blocks, full):
            self._pool.remember(sequence.block_table[position], sequence.block_hashes[position])
        sequence.num_remembered_blocks = full

    def _hash_blocks(self, sequence: Sequence, num_blocks: int) -> None:
        size = self._block_size
        hashes = sequence.block_hashes
        for position in range(len(hashes), num_blocks):
            parent = hashes[-1] if hashes else root_hash(sequence.salt)
            hashes.append(hash_block(parent, sequence.token_ids[position * size : (position + 1) * size]))
