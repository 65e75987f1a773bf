"""A sequence's beginning is found among full blocks: computed ones, of its own salt, and never all of its tokens."""

import pytest

from engines.native.block_pool import BlockPool
from engines.native.prefix_cache import PrefixCache, hash_block, root_hash
from engines.native.sequence import Sequence
from engines.native.types import TokenParams

BLOCK_SIZE = 4


def sequence(num_tokens: int, salt: str = "") -> Sequence:
    return Sequence((b"client", 0), list(range(num_tokens)), num_tokens, TokenParams(max_tokens=8), salt)


def remembered(cache: PrefixCache, pool: BlockPool, num_tokens: int, num_computed: int) -> list[int]:
    """The blocks of a running sequence of `num_tokens`, remembered as far as they are computed."""
    running = sequence(num_tokens)
    running.row = 0
    running.num_computed_tokens = num_computed
    running.block_table = [pool.allocate() for _ in range(-(-num_tokens // BLOCK_SIZE))]
    cache.remember(running)
    return running.block_table


def test_equal_tokens_under_different_parents_or_salts_hash_differently():
    first = hash_block(root_hash("a"), [1, 2])
    assert first != hash_block(root_hash("b"), [1, 2])
    assert hash_block(first, [1, 2]) != first


@pytest.mark.parametrize(("num_tokens", "num_hits"), [(3, 0), (4, 0), (5, 1), (8, 1), (9, 2), (12, 2), (13, 3)])
def test_at_least_one_token_is_left_to_compute(num_tokens: int, num_hits: int):
    pool = BlockPool(8, BLOCK_SIZE)
    cache = PrefixCache(pool)
    blocks = remembered(cache, pool, 14, 14)
    assert cache.find(sequence(num_tokens)) == blocks[:num_hits]


def test_only_computed_blocks_of_the_same_salt_are_found():
    pool = BlockPool(8, BLOCK_SIZE)
    cache = PrefixCache(pool)
    blocks = remembered(cache, pool, 14, 7)
    assert cache.find(sequence(14)) == blocks[:1]
    assert cache.find(sequence(14, "another")) == []
