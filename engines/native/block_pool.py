"""Owns the KV cache's blocks by number: who holds each, which are free, and which full blocks can be found again.

A block is in exactly one state:

    held        reference count > 0, in no free list
    free        reference count 0, in the free list, contents forgotten
    cached      reference count 0, in the free list, contents still findable by hash until the block is handed out again

The free list is ordered by release: the head is the least recently used and is handed out first. Block contents are
found by the hash that `prefix_cache` makes of them. Knows nothing of sequences, tensors or devices.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

BlockHash = bytes


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens, reference counted, with a prefix cache over full blocks."""

    def __init__(self, num_blocks: int, block_size: int, *, caching: bool = True) -> None:
        assert num_blocks > 0
        assert block_size > 0
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.caching = caching
        self._references = [0] * num_blocks
        self._hash_of: list[BlockHash | None] = [None] * num_blocks
        self._block_of: dict[BlockHash, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can hand out, cached ones included."""
        return len(self._free)

    @property
    def num_held(self) -> int:
        return self.num_blocks - len(self._free)

    def allocate(self) -> int:
        """Hand out the least recently used free block. The caller checked `num_free`."""
        block, _ = self._free.popitem(last=False)
        self._forget(block)
        self._references[block] = 1
        return block

    def find(self, block_hash: BlockHash) -> int | None:
        """The block with these contents, held or cached, without taking it."""
        return self._block_of.get(block_hash)

    def is_free(self, block: int) -> bool:
        return self._references[block] == 0

    def share(self, block: int) -> None:
        """Take one more reference to a block that `find` returned."""
        if self._references[block] == 0:
            del self._free[block]
        self._references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drop one reference to each, in order: the first released is the first to be handed out again.

        Callers pass a sequence's blocks last to first, so that a prefix's head outlives its tail.
        """
        for block in blocks:
            count = self._references[block] - 1
            assert count >= 0, f"block {block} released more often than taken"
            self._references[block] = count
            if count == 0:
                self._free[block] = None
                if self._hash_of[block] is None:
                    self._free.move_to_end(block, last=False)  # nothing to find in it: reuse it before cached ones

    def remember(self, block: int, block_hash: BlockHash) -> None:
        """Make a held, full block findable. Where those contents are known already, the older block stays."""
        if not self.caching or self._hash_of[block] is not None or block_hash in self._block_of:
            return
        self._hash_of[block] = block_hash
        self._block_of[block_hash] = block

    def _forget(self, block: int) -> None:
        block_hash = self._hash_of[block]
        if block_hash is not None:
            self._hash_of[block] = None
            del self._block_of[block_hash]
