"""Every block is held, free or cached, and never two of those."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from engines.native.block_pool import BlockPool
from engines.native.prefix_cache import hash_block, root_hash


class PoolMachine(RuleBasedStateMachine):
    """Random sequences of allocate, share, remember, release against a plain model of references."""

    blocks = Bundle("blocks")

    @initialize(num_blocks=st.integers(1, 6))
    def create(self, num_blocks):
        self.pool = BlockPool(num_blocks, 4)
        self.references = Counter()
        self.contents = {}

    @rule(target=blocks)
    def allocate(self):
        if self.pool.num_free == 0:
            return -1
        block = self.pool.allocate()
        assert self.references[block] == 0
        self.references[block] = 1
        self.contents = {name: held for name, held in self.contents.items() if held != block}
        return block

    @rule(block=blocks, name=st.integers(0, 3))
    def remember(self, block, name):
        if self.references[block] > 0 and block not in self.contents.values():
            self.pool.remember(block, hash_block(root_hash(""), [name]))
            self.contents.setdefault(name, block)

    @rule(target=blocks, name=st.integers(0, 3))
    def share(self, name):
        block = self.pool.find(hash_block(root_hash(""), [name]))
        assert block == self.contents.get(name)
        if block is None:
            return -1
        self.pool.share(block)
        self.references[block] += 1
        return block

    @rule(block=consumes(blocks))
    def release(self, block):
        if block >= 0:
            self.pool.release([block])
            self.references[block] -= 1

    @invariant()
    def every_block_is_held_or_free(self):
        if hasattr(self, "pool"):
            held = {block for block, count in self.references.items() if count > 0}
            assert self.pool.num_held == len(held)
            assert self.pool.num_free == self.pool.num_blocks - len(held)
            assert all(self.pool.is_free(block) == (block not in held) for block in range(self.pool.num_blocks))


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase


def test_least_recently_released_cached_block_is_handed_out_first():
    pool = BlockPool(3, 4)
    blocks = [pool.allocate() for _ in range(3)]
    for name, block in enumerate(blocks):
        pool.remember(block, hash_block(root_hash(""), [name]))
    pool.release([blocks[1]])
    pool.release([blocks[0]])
    pool.release([blocks[2]])
    assert [pool.allocate() for _ in range(3)] == [blocks[1], blocks[0], blocks[2]]


def test_blocks_without_contents_are_handed_out_before_cached_ones():
    pool = BlockPool(2, 4)
    cached, plain = pool.allocate(), pool.allocate()
    pool.remember(cached, root_hash("x"))
    pool.release([cached])
    pool.release([plain])
    assert pool.allocate() == plain
    assert pool.find(root_hash("x")) == cached


def test_a_pool_without_caching_finds_nothing():
    pool = BlockPool(2, 4, caching=False)
    pool.remember(pool.allocate(), root_hash(""))
    assert pool.find(root_hash("")) is None
