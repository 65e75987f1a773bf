"""Constrained sequences among others, with scripted grammars and a runner that checks every KV slot.

A scripted grammar allows tokens by what was generated last, so that a mask which is one token late shows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.native.block_pool import BlockPool
from engines.native.core import EngineCore
from engines.native.grammar.constraint import Choosing, GrammarError, Limit, Matched, Progress, TokenMasks
from engines.native.scheduler import Scheduler, SchedulerLimits
from engines.native.types import (
    FINISH_COMPLETE,
    FINISH_LENGTH,
    FINISH_REFUSED,
    FINISH_STOP,
    AddSequence,
    GrammarSpec,
    ThinkingSpec,
    TokenParams,
)
from tests.engines.native.scripted_runner import ScriptedRunner, allowed_token, next_token

CLIENT, VOCAB, EOS = b"client", 50, 0


@dataclass
class Chain:
    """Each token is at most `stride` above the one before, in a circle; after `length` tokens nothing may follow."""

    stride: int
    length: int
    tokens: list[int] = field(default_factory=list)
    error: str = ""

    def allowed(self) -> set[int]:
        last = self.tokens[-1] if self.tokens else 0
        return {(last + step) % VOCAB for step in range(1, self.stride + 1)}

    def limit(self) -> Limit:
        return Matched(self)

    def advance(self, token_id: int) -> Progress:
        if token_id not in self.allowed():
            self.error = f"{token_id} after {self.tokens}"
            return "failed"
        self.tokens.append(token_id)
        return "complete" if len(self.tokens) == self.length else "open"


class Chains:
    """Satisfies `Constraints`. "3 7" is a Chain of stride 3 and length 7; futures are done when `ready` says so."""

    def __init__(self) -> None:
        self.pending: list[tuple[Future[Chain], str]] = []

    def request(self, grammar: GrammarSpec | None, thinking: ThinkingSpec | None) -> Future[Chain]:
        assert grammar is not None
        assert thinking is None
        future: Future[Chain] = Future()
        self.pending.append((future, grammar.text))
        return future

    def finish_one(self) -> None:
        if self.pending:
            future, text = self.pending.pop(0)
            if text == "bad":
                future.set_exception(GrammarError("no such grammar"))
            else:
                stride, length = map(int, text.split())
                future.set_result(Chain(stride, length))

    def masks(self, choosing: Sequence[Choosing]) -> TokenMasks:
        bits = np.zeros((len(choosing), 2), dtype=np.uint32)
        for row, choice in zip(bits, choosing, strict=True):
            assert isinstance(choice.constraint, Chain)
            for token in choice.constraint.allowed():
                row[token // 32] |= np.uint32(1 << token % 32)
        return TokenMasks([choice.place for choice in choosing], bits.view(np.int32))


class Harness:
    def __init__(self, num_blocks=64, block_size=4, max_num_seqs=8, budget=32, caching=True, overlapped=False):
        self.pool = BlockPool(num_blocks, block_size, caching=caching)
        self.chains = Chains()
        scheduler = Scheduler(self.pool, SchedulerLimits(max_num_seqs=max_num_seqs, max_num_batched_tokens=budget))
        self.core = EngineCore(scheduler, ScriptedRunner(num_blocks, block_size), constraints=self.chains)
        self.step = self.core.step_overlapped if overlapped else self.core.step
        self.tokens: dict[int, list[int]] = {}
        self.finish: dict[int, int] = {}
        self.errors: dict[int, str] = {}

    def add(self, seq_id: int, prompt: Sequence[int], grammar: str | None, **params) -> None:
        spec = None if grammar is None else GrammarSpec("chain", grammar)
        settings = TokenParams(**{"max_tokens": 8, **params})
        self.core.add(CLIENT, AddSequence(seq_id, tuple(prompt), settings, grammar=spec))
        self.tokens[seq_id] = []

    def run_step(self) -> None:
        for sequence, output in self.step():
            seq_id = sequence.key[1]
            assert seq_id not in self.finish, "output after the finish"
            self.tokens[seq_id] += output.token_ids
            if output.finish:
                self.finish[seq_id], self.errors[seq_id] = output.finish, output.error

    def run(self, max_steps=2000) -> None:
        for _ in range(max_steps):
            self.chains.finish_one()
            if not self.core.has_work and not self.core.is_compiling:
                return
            self.run_step()
        pytest.fail("livelock: work left after many steps")


def alone(prompt: Sequence[int], max_tokens: int, grammar: str | None, stop_ids: Sequence[int] = ()) -> list[int]:
    tokens = list(prompt)
    chain = None if grammar is None else Chain(*map(int, grammar.split()))
    for _ in range(max_tokens):
        token = next_token(tokens, VOCAB) if chain is None else allowed_token(tokens, VOCAB, chain.allowed())
        tokens.append(token)
        if token in stop_ids or (chain is not None and chain.advance(token) == "complete"):
            break
    return tokens[len(prompt) :]


requests = st.lists(
    st.tuples(
        st.integers(0, 3),  # which shared prefix
        st.integers(1, 30),  # prompt length
        st.integers(1, 20),  # max_tokens
        st.integers(0, 12),  # the step it arrives at
        st.one_of(st.none(), st.integers(0, 15)),  # the step it is aborted at
        st.one_of(st.none(), st.builds("{} {}".format, st.integers(1, 9), st.integers(1, 12))),
    ),
    min_size=1,
    max_size=10,
)


@pytest.mark.parametrize("overlapped", [False, True], ids=["plain", "overlapped"])
@settings(max_examples=80, deadline=None)
@given(
    requests=requests,
    num_blocks=st.integers(14, 40),
    block_size=st.sampled_from([1, 3, 4, 16]),
    max_num_seqs=st.integers(1, 6),
    budget=st.integers(6, 64),
    caching=st.booleans(),
    stop_ids=st.sets(st.integers(0, 49), max_size=4),
)
def test_any_mixed_load_gives_each_request_the_tokens_it_gets_alone(
    overlapped, requests, num_blocks, block_size, max_num_seqs, budget, caching, stop_ids
):
    num_blocks = max(num_blocks, -(-50 // block_size))  # one sequence of the maximal length always fits
    harness = Harness(num_blocks, block_size, max_num_seqs, budget, caching, overlapped)
    prefixes = [random.Random(seed).choices(range(50), k=30) for seed in range(4)]
    aborted = set()
    for step in range(17):
        for seq_id, (prefix, length, max_tokens, arrival, abort, grammar) in enumerate(requests):
            if arrival == step:
                harness.add(
                    seq_id, prefixes[prefix][:length], grammar, max_tokens=max_tokens, stop_token_ids=tuple(stop_ids)
                )
            if abort is not None and arrival + abort == step and seq_id not in harness.finish:
                harness.core.abort(CLIENT, (seq_id,))
                aborted.add(seq_id)
        if step % 2:
            harness.chains.finish_one()
        harness.run_step()
    harness.run()
    for seq_id, (prefix, length, max_tokens, _, _, grammar) in enumerate(requests):
        expected = alone(prefixes[prefix][:length], max_tokens, grammar, tuple(stop_ids))
        if seq_id in aborted:
            assert harness.tokens[seq_id] == expected[: len(harness.tokens[seq_id])]
            continue
        assert harness.tokens[seq_id] == expected
        complete = grammar is not None and len(expected) == int(grammar.split()[1])
        ends = FINISH_STOP if expected[-1] in stop_ids else FINISH_COMPLETE if complete else FINISH_LENGTH
        assert harness.finish[seq_id] == ends
    assert harness.pool.num_held == 0


def test_a_grammar_that_takes_long_to_compile_holds_up_nobody():
    harness = Harness()
    harness.add(1, range(5), "3 4")
    harness.add(2, range(5), None)
    for _ in range(8):
        harness.run_step()
    assert harness.tokens == {1: [], 2: alone(range(5), 8, None)}
    assert not harness.core.has_work
    assert harness.core.num_waiting == 1
    harness.chains.finish_one()
    assert harness.core.has_work
    harness.run()
    assert harness.tokens[1] == alone(range(5), 8, "3 4")


def test_a_refused_grammar_ends_its_request_alone_and_says_why():
    harness = Harness(overlapped=True)
    harness.add(1, range(5), "bad")
    harness.add(2, range(5), "2 3")
    harness.run()
    assert (harness.finish[1], harness.errors[1], harness.tokens[1]) == (FINISH_REFUSED, "no such grammar", [])
    assert harness.finish[2] == FINISH_COMPLETE


def test_a_request_that_leaves_while_its_grammar_is_compiled_is_forgotten():
    harness = Harness()
    harness.add(1, range(5), "3 4")
    harness.add(2, range(5), "3 4")
    harness.core.abort(CLIENT, (1,))
    harness.core.abort_client(CLIENT)
    harness.chains.finish_one()
    assert not harness.core.is_compiling
    assert not harness.core.has_work


def test_a_constraint_that_fails_ends_its_sequence_with_its_reason():
    harness = Harness()
    harness.add(1, range(5), "0 4")  # allows nothing, so any token is wrong
    harness.chains.masks = lambda choosing: TokenMasks(  # type: ignore[method-assign]
        [choice.place for choice in choosing], np.full((len(choosing), 2), -1, dtype=np.int32)
    )
    harness.run()
    assert harness.finish[1] == FINISH_REFUSED
    assert "after []" in harness.errors[1]
    assert harness.pool.num_held == 0


def test_a_complete_grammar_ends_a_sequence_before_min_tokens():
    harness = Harness()
    harness.add(1, range(5), "4 3", min_tokens=7, stop_token_ids=tuple(range(50)))
    harness.run()
    assert len(harness.tokens[1]) == 3
    assert harness.finish[1] == FINISH_COMPLETE
