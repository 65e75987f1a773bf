"""Scheduling policy, with a runner that checks every KV slot instead of a model."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.native.block_pool import BlockPool
from engines.native.core import EngineCore
from engines.native.scheduler import Scheduler, SchedulerLimits
from engines.native.types import (
    FINISH_LENGTH,
    FINISH_STOP,
    LAST_TOKEN,
    MEAN_TOKENS,
    AddSequence,
    Pooling,
    TokenParams,
)
from tests.engines.native.scripted_runner import ScriptedRunner, next_token

CLIENT = b"client"


class Harness:
    """A core over the scripted runner, its tokens collected by sequence."""

    def __init__(self, num_blocks=64, block_size=4, max_num_seqs=8, budget=32, caching=True, overlapped=False):
        self.pool = BlockPool(num_blocks, block_size, caching=caching)
        self.runner = ScriptedRunner(num_blocks, block_size)
        self.scheduler = Scheduler(self.pool, SchedulerLimits(max_num_seqs=max_num_seqs, max_num_batched_tokens=budget))
        self.core = EngineCore(self.scheduler, self.runner)
        self.step = self.core.step_overlapped if overlapped else self.core.step
        self.tokens: dict[int, list[int]] = {}
        self.finish: dict[int, int] = {}
        self.vectors: dict[int, bytes] = {}
        self.cached: dict[int, int] = {}

    def add(self, seq_id, prompt, max_tokens=8, priority=0, **params):
        token_params = TokenParams(max_tokens=max_tokens, **params)
        self.core.add(CLIENT, AddSequence(seq_id, tuple(prompt), token_params, priority=priority))
        self.tokens[seq_id] = []

    def run_step(self):
        for sequence, output in self.step():
            seq_id = sequence.key[1]
            assert seq_id not in self.finish, "output after the finish"
            self.tokens[seq_id] += output.token_ids
            if output.cached_tokens >= 0:
                self.cached[seq_id] = output.cached_tokens
            if output.embedding:
                self.vectors[seq_id] = output.embedding
            if output.finish:
                self.finish[seq_id] = output.finish

    def run(self, max_steps=2000):
        for _ in range(max_steps):
            if not self.core.has_work:
                return
            self.run_step()
        pytest.fail("livelock: work left after many steps")


def expected(prompt, max_tokens, stop_ids=()):
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(next_token(tokens, 50))
        if tokens[-1] in stop_ids:
            break
    return tokens[len(prompt) :]


requests = st.lists(
    st.tuples(
        st.integers(0, 3),  # which shared prefix
        st.integers(1, 30),  # prompt length
        st.integers(1, 20),  # max_tokens
        st.integers(0, 12),  # the step it arrives at
        st.one_of(st.none(), st.integers(0, 15)),  # the step it is aborted at
        st.integers(-1, 1),  # priority
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("overlapped", [False, True], ids=["plain", "overlapped"])
@settings(max_examples=120, deadline=None)
@given(
    requests=requests,
    num_blocks=st.integers(14, 40),
    block_size=st.sampled_from([1, 3, 4, 16]),
    max_num_seqs=st.integers(1, 6),
    budget=st.integers(6, 64),
    caching=st.booleans(),
    stop_ids=st.sets(st.integers(0, 49), max_size=4),
)
def test_any_load_gives_each_request_the_tokens_it_gets_alone(
    overlapped, requests, num_blocks, block_size, max_num_seqs, budget, caching, stop_ids
):
    num_blocks = max(num_blocks, -(-50 // block_size))  # one sequence of the maximal length always fits
    harness = Harness(num_blocks, block_size, max_num_seqs, budget, caching, overlapped)
    prefixes = [random.Random(seed).choices(range(50), k=30) for seed in range(4)]
    aborted = set()
    for step in range(17):
        for seq_id, (prefix, length, max_tokens, arrival, abort, priority) in enumerate(requests):
            if arrival == step:
                harness.add(seq_id, prefixes[prefix][:length], max_tokens, priority, stop_token_ids=tuple(stop_ids))
            if abort is not None and arrival + abort == step and seq_id not in harness.finish:
                harness.core.abort(CLIENT, (seq_id,))
                aborted.add(seq_id)
        harness.run_step()
    harness.run()
    for seq_id, (prefix, length, max_tokens, _, _, _) in enumerate(requests):
        alone = expected(prefixes[prefix][:length], max_tokens, stop_ids)
        if seq_id in aborted:
            assert harness.tokens[seq_id] == alone[: len(harness.tokens[seq_id])]
        else:
            assert harness.tokens[seq_id] == alone
            assert harness.finish[seq_id] == (FINISH_STOP if alone[-1] in stop_ids else FINISH_LENGTH)
    assert harness.pool.num_held == 0
    assert harness.scheduler.stats().running == harness.scheduler.stats().waiting == 0


def test_a_sequence_preempted_while_its_last_token_is_in_flight_still_finishes():
    harness = Harness(num_blocks=16, block_size=1, max_num_seqs=3, budget=20, caching=False, overlapped=True)
    harness.add(1, range(8), max_tokens=4)
    harness.add(2, range(20, 26), max_tokens=2)
    harness.run()
    assert harness.scheduler.stats().preemptions > 0
    assert harness.tokens == {1: expected(range(8), 4), 2: expected(range(20, 26), 2)}
    assert harness.pool.num_held == 0


def test_decodes_go_on_while_a_long_prompt_is_prefilled_in_chunks():
    harness = Harness(budget=8)
    harness.add(1, range(4), max_tokens=20)
    harness.run_step()
    harness.add(2, range(10, 40), max_tokens=1)
    before = len(harness.tokens[1])
    steps = 0
    while 2 not in harness.finish:
        harness.run_step()
        steps += 1
    assert steps == 5  # 30 tokens in chunks of 7 beside one decode
    assert len(harness.tokens[1]) == before + steps


def test_a_shared_prefix_is_computed_once():
    harness = Harness(num_blocks=64, block_size=4)
    harness.add(1, range(17), max_tokens=1)
    harness.run()
    computed = harness.runner.num_computed_tokens
    harness.add(2, range(17), max_tokens=1)
    harness.run()
    assert harness.cached[2] == 16
    assert harness.runner.num_computed_tokens == computed + 1


def test_twins_in_one_step_share_the_prefix_that_the_first_is_computing():
    harness = Harness(budget=64)
    harness.add(1, range(17), max_tokens=2)
    harness.add(2, range(17), max_tokens=2)
    harness.run_step()
    assert harness.runner.num_computed_tokens == 17 + 1
    assert harness.pool.num_held == 4 + 2


def test_generated_tokens_are_found_in_the_prefix_cache_too():
    harness = Harness()
    harness.add(1, range(8), max_tokens=9)
    harness.run()
    conversation = [*range(8), *harness.tokens[1], 7]
    harness.add(2, conversation, max_tokens=1)
    harness.run()
    assert harness.cached[2] == 16


def test_salts_keep_prefixes_apart():
    harness = Harness()
    params = TokenParams(max_tokens=1)
    for seq_id, salt in ((1, "a"), (2, "b"), (3, "a")):
        harness.tokens[seq_id] = []
        harness.core.add(CLIENT, AddSequence(seq_id, tuple(range(17)), params, salt))
        harness.run()
    assert harness.cached == {1: 0, 2: 0, 3: 16}


def test_the_newest_sequence_yields_and_still_gets_its_tokens():
    harness = Harness(num_blocks=10, block_size=2)
    harness.add(1, range(5), max_tokens=13)
    harness.add(2, range(10, 15), max_tokens=13)
    harness.run()
    assert harness.scheduler.stats().preemptions > 0
    assert harness.tokens[1] == expected(range(5), 13)
    assert harness.tokens[2] == expected(range(10, 15), 13)


def test_the_lowest_priority_goes_first_and_equals_go_in_order_of_arrival():
    harness = Harness(max_num_seqs=1)
    for seq_id, priority in enumerate([0, 5, 0, -3, 5]):
        harness.add(seq_id, range(seq_id, seq_id + 5), priority=priority)
    harness.run()
    assert list(harness.finish) == [3, 0, 2, 1, 4]


def test_a_later_sequence_of_lower_priority_makes_an_earlier_one_yield():
    harness = Harness(num_blocks=10, block_size=2)
    harness.add(1, range(5), max_tokens=13, priority=1)
    harness.add(2, range(10, 15), max_tokens=13)
    harness.run()
    assert harness.scheduler.stats().preemptions > 0
    assert list(harness.finish) == [2, 1]
    assert harness.tokens[1] == expected(range(5), 13)


@pytest.mark.parametrize("overlapped", [False, True], ids=["plain", "overlapped"])
def test_an_abort_frees_all_blocks_on_the_next_step_and_the_next_request_is_served(overlapped):
    harness = Harness(overlapped=overlapped, num_blocks=16)
    for seq_id in range(10_000):
        harness.add(seq_id, range(20), max_tokens=20)
        if seq_id % 3:
            harness.run_step()
        harness.core.abort(CLIENT, (seq_id,))
    harness.run()
    assert harness.pool.num_held == 0
    harness.add(10_001, range(20), max_tokens=3)
    harness.run()
    assert harness.tokens[10_001] == expected(range(20), 3)


def test_a_vanished_client_leaves_nothing_behind():
    harness = Harness()
    harness.add(1, range(20), max_tokens=20)
    harness.run_step()
    harness.add(2, range(20), max_tokens=20)
    harness.core.abort_client(CLIENT)
    assert not harness.core.has_work
    assert harness.pool.num_held == 0


def test_no_output_is_reported_beyond_the_token_limit_even_when_running_ahead():
    harness = Harness(overlapped=True)
    harness.add(1, range(3), max_tokens=5)
    harness.run()
    assert len(harness.tokens[1]) == 5
    assert harness.runner.num_computed_tokens == 3 + 4  # the limit is foreseen: no step in vain


def test_stop_tokens_before_min_tokens_do_not_end_a_sequence():
    prompt = list(range(6))
    tokens = expected(prompt, 10)
    harness = Harness()
    harness.add(1, prompt, max_tokens=10, min_tokens=4, stop_token_ids=(tokens[1],))
    harness.run()
    assert len(harness.tokens[1]) > 4


def test_max_tokens_zero_only_reads_the_prompt():
    harness = Harness()
    harness.add(1, range(6), max_tokens=0)
    harness.run()
    assert harness.tokens[1] == []
    assert harness.finish[1] == FINISH_LENGTH


@pytest.mark.parametrize("overlapped", [False, True], ids=["plain", "overlapped"])
@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(
        st.tuples(
            st.sampled_from([None, LAST_TOKEN, MEAN_TOKENS]),  # None generates
            st.integers(0, 2),  # which shared prefix
            st.integers(1, 30),  # prompt length
            st.integers(0, 8),  # the step it arrives at
            st.one_of(st.none(), st.integers(0, 9)),  # the step it is aborted at
        ),
        min_size=1,
        max_size=12,
    ),
    block_size=st.sampled_from([1, 3, 4, 16]),
    max_num_seqs=st.integers(1, 6),
    budget=st.integers(6, 40),
)
def test_pooled_sequences_are_computed_beside_those_that_generate(
    overlapped, requests, block_size, max_num_seqs, budget
):
    harness = Harness(max(14, -(-50 // block_size)), block_size, max_num_seqs, budget, True, overlapped)
    prefixes = [random.Random(seed).choices(range(50), k=30) for seed in range(3)]
    aborted = set()
    for step in range(18):
        for seq_id, (mode, prefix, length, arrival, abort) in enumerate(requests):
            if arrival == step:
                pooling = None if mode is None else Pooling(mode)
                harness.add(seq_id, prefixes[prefix][:length], 0 if pooling else 6, pooling=pooling)
            if abort is not None and arrival + abort == step and seq_id not in harness.finish:
                harness.core.abort(CLIENT, (seq_id,))
                aborted.add(seq_id)
        harness.run_step()
    harness.run()
    for seq_id, (mode, prefix, length, _, _) in enumerate(requests):
        prompt = prefixes[prefix][:length]
        if seq_id in aborted:
            continue
        if mode is None:
            assert harness.tokens[seq_id] == expected(prompt, 6)
        else:
            assert harness.tokens[seq_id] == []
            assert harness.finish[seq_id] == FINISH_STOP
            vector = harness.vectors[seq_id]
            if mode == MEAN_TOKENS:
                assert vector == bytes(prompt), "the mean needs every token, each once"
            else:
                assert bytes(prompt).endswith(vector)
                assert len(vector) == length - harness.cached[seq_id] > 0
    assert harness.pool.num_held == 0
    stats = harness.core.stats()
    assert (stats.running, stats.waiting) == (0, 0)
