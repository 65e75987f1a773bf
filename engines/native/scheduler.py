"""Decides each step: who runs, how many tokens each, which blocks. Plain Python over lists and deques, no torch.

There are no phases. A running sequence always lacks some tokens in the KV cache: one (a decode) or many (a prefill,
taken in chunks). Each step has one token budget; decodes are served first, then prefill chunks of running sequences,
then waiting sequences are admitted while rows, blocks and budget last. Within each of the three the order is that of
priority, the lowest number first, and among equals that of arrival.

    add -> waiting -> (schedule: admitted) -> running -> (commit: finished | abort) -> gone
                ^______ (schedule: preempted) ____|

Blocks for all known tokens are taken at admission, so that only a growing sequence can find the pool empty; then the
last running sequence, in that order, is preempted: its blocks are released and it goes back to the queue, before its
equals, to be recomputed, mostly from the prefix cache. The first never yields to a later one, and the pool holds at
least one sequence of the maximal length, so the first always finishes: no livelock. A waiting sequence interrupts none.

`schedule` may run ahead of `commit` by one step: a sequence then counts tokens that only the device knows
(`num_pending`). A sequence that turns out to have finished meanwhile has computed one row in vain, and its result is
dropped at commit.
"""

from __future__ import annotations

import time
from bisect import insort_right
from collections import deque
from dataclasses import dataclass

from engines.native.block_pool import BlockPool
from engines.native.chunking import ChunkSizer
from engines.native.grammar.constraint import Choosing
from engines.native.prefix_cache import PrefixCache
from engines.native.sequence import Sequence, SequenceKey
from engines.native.token_output import finish_of, token_output, vector_output
from engines.native.types import (
    Admission,
    BatchPlan,
    LogprobRow,
    SampledTokens,
    SchedulerStats,
    TokenOutput,
)
from engines.native.waiting_queue import WaitingQueue

Output = tuple[Sequence, TokenOutput]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """Token budget of a step, how many of them may be of prompts, and rows of the runner's state."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_prefill_tokens: int = 1 << 30


class Scheduler:
    """Owns every Sequence from `add` to its end, and the BlockPool."""

    def __init__(self, pool: BlockPool, limits: SchedulerLimits, chunks: ChunkSizer | None = None) -> None:
        self._pool = pool
        self._chunks = chunks or ChunkSizer(0.0)  # of steps that also decode
        self._prefixes = PrefixCache(pool)
        self._limits = limits
        self._waiting = WaitingQueue()
        self._running: list[Sequence] = []  # in order of priority, then of admission: the last is the first to yield
        self._by_key: dict[SequenceKey, Sequence] = {}
        self._free_rows = list(range(limits.max_num_seqs - 1, -1, -1))
        self._in_flight: deque[list[Sequence]] = deque()  # per scheduled, uncommitted step: its sequences in plan order
        self._hit_tokens = self._query_tokens = self._preemptions = self._prompt_tokens = self._generated_tokens = 0

    # --- what the core calls ------------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence whose prompt and max_tokens fit the pool: the client checked that against Ready."""
        self._by_key[sequence.key] = sequence
        self._waiting.add(sequence)

    def abort(self, key: SequenceKey) -> None:
        """Forget a sequence and free what it holds; unknown keys are ignored, since a finish may cross an abort."""
        sequence = self._by_key.get(key)
        if sequence is not None:
            self._end(sequence)

    def abort_client(self, client: bytes) -> None:
        """Forget everything a vanished client asked for."""
        for key in [key for key in self._by_key if key[0] == client]:
            self.abort(key)

    def schedule(self) -> BatchPlan:
        """One step's plan; empty when nothing can run."""
        plan = BatchPlan()
        sequences: list[Sequence] = []
        preempted_before = self._preemptions
        budget = self._schedule_decodes(plan, sequences, self._limits.max_num_batched_tokens)
        budget = min(budget, self._limits.max_prefill_tokens)
        if plan.num_decodes and (self._waiting or plan.num_decodes < len(self._running)):  # else there are no prompts
            budget = min(budget, self._chunks.tokens_for(plan.num_decodes, self._backlog()))
        budget = self._schedule_prefills(plan, sequences, budget)
        if self._preemptions == preempted_before:  # admitting now would take back what preemption just freed
            self._admit(plan, sequences, budget)
        self._in_flight.append(sequences)
        return plan

    def commit(self, plan: BatchPlan, sampled: SampledTokens) -> list[Output]:
        """Record what the oldest uncommitted step brought: append, finish, free, report."""
        outputs: list[Output] = []
        num_sampled = 0
        sequences = self._in_flight.popleft()
        for index, sequence in enumerate(sequences):
            if index in sampled.prompt_logprobs and sequence.wants_prompt_logprobs:
                sequence.prompt_logprobs.extend(sampled.prompt_logprobs[index])
            if not plan.samples[index]:
                continue
            sequence.num_pending -= 1
            if not sequence.finished:
                logprobs = sampled.logprobs.get(num_sampled)
                outputs.append((sequence, self._append(sequence, sampled.token_ids[num_sampled], logprobs)))
            num_sampled += 1
        for index, vector in sampled.embeddings.items():
            if not sequences[index].finished:
                outputs.append((sequences[index], self._embedded(sequences[index], vector)))
        return outputs

    def choosing(self, plan: BatchPlan) -> list[Choosing]:
        """Of the newest scheduled step, which is `plan`, those whose next token is limited. Every earlier step must be
        committed: what may come next depends on the token before."""
        found: list[Choosing] = []
        place = 0
        for sequence, samples in zip(self._in_flight[-1], plan.samples, strict=True):
            if samples and sequence.constraint is not None and not sequence.finished:
                may_end = len(sequence.token_ids) >= sequence.num_prompt_tokens + sequence.params.min_tokens
                ends = sequence.stop_token_ids if may_end else frozenset[int]()
                found.append(Choosing(place, sequence.constraint, ends))
            place += samples
        return found

    def stats(self) -> SchedulerStats:
        return SchedulerStats(
            running=len(self._running),
            waiting=len(self._waiting),
            kv_blocks_used=self._pool.num_held,
            kv_blocks_total=self._pool.num_blocks,
            prefix_cache_hit_tokens=self._hit_tokens,
            prefix_cache_query_tokens=self._query_tokens,
            preemptions=self._preemptions,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
        )

    # --- deciding -----------------------------------------------------------------------------------------------------

    def _schedule_decodes(self, plan: BatchPlan, sequences: list[Sequence], budget: int) -> int:
        """Every running sequence that lacks exactly one token. Returns the budget that is left."""
        position = 0
        while position < len(self._running) and budget > 0:
            sequence = self._running[position]
            position += 1
            num_tokens = sequence.num_tokens
            if num_tokens - sequence.num_computed_tokens != 1 or num_tokens >= sequence.max_length:
                continue  # a prefill, or its last token is in flight
            if num_tokens > len(sequence.block_table) * self._pool.block_size and not self._grow(sequence, plan):
                break  # it was the last and had to yield
            self._take(plan, sequences, sequence, 1)
            budget -= 1
        plan.num_decodes = len(sequences)
        return budget

    def _backlog(self) -> int:
        """Prompt tokens that are still to be computed, of running sequences and of those that there are rows for."""
        missing = (sequence.num_tokens - sequence.num_computed_tokens for sequence in self._running)
        return sum(count for count in missing if count > 1) + self._waiting.num_tokens(of_first=len(self._free_rows))

    def _schedule_prefills(self, plan: BatchPlan, sequences: list[Sequence], budget: int) -> int:
        """The next chunk of every running sequence that lacks several tokens: it has its blocks since admission."""
        for sequence in self._running:
            missing = sequence.num_tokens - sequence.num_computed_tokens
            if budget == 0:
                break
            if missing and (missing > 1 or sequence.is_pooled):
                chunk = min(missing, budget)
                self._take_chunk(plan, sequences, sequence, chunk)
                budget -= chunk
        return budget

    def _admit(self, plan: BatchPlan, sequences: list[Sequence], budget: int) -> None:
        """Waiting sequences, in their order, while budget, rows and blocks for all their tokens last."""
        while self._waiting and self._free_rows and budget > 0:
            sequence = self._waiting.first
            hits = self._prefixes.find(sequence)
            num_new_blocks = -(-len(sequence.token_ids) // self._pool.block_size) - len(hits)
            num_free = self._pool.num_free - sum(self._pool.is_free(block) for block in hits)
            headroom = len(self._running)  # each running sequence can grow by a block before anyone is preempted
            if num_new_blocks + headroom > num_free:
                break
            self._waiting.pop()
            self._place(sequence, hits, num_new_blocks, plan)
            chunk = min(len(sequence.token_ids) - sequence.num_computed_tokens, budget)
            self._take_chunk(plan, sequences, sequence, chunk)
            budget -= chunk

    def _place(self, sequence: Sequence, hits: list[int], num_new_blocks: int, plan: BatchPlan) -> None:
        """Give a waiting sequence its row and blocks."""
        for block in hits:
            self._pool.share(block)
        sequence.block_table = hits + [self._pool.allocate() for _ in range(num_new_blocks)]
        sequence.num_computed_tokens = len(hits) * self._pool.block_size
        sequence.num_remembered_blocks = len(hits)
        sequence.row = self._free_rows.pop()
        insort_right(self._running, sequence, key=_priority)
        if sequence.num_cached_tokens < 0:  # not on the way back from preemption
            sequence.num_cached_tokens = sequence.num_computed_tokens
            sequence.queued_s = time.monotonic() - sequence.arrived_at
            self._hit_tokens += sequence.num_computed_tokens
            self._query_tokens += sequence.num_prompt_tokens
            self._prompt_tokens += sequence.num_prompt_tokens
        plan.admissions.append(
            Admission(sequence.row, list(sequence.token_ids), sequence.num_prompt_tokens, sequence.params)
        )
        plan.block_appends.extend((sequence.row, i, block) for i, block in enumerate(sequence.block_table))

    def _take_chunk(self, plan: BatchPlan, sequences: list[Sequence], sequence: Sequence, num_tokens: int) -> None:
        """`_take` for a part of a prompt. One that is pooled ends without a sample: its vector is the result."""
        self._take(plan, sequences, sequence, num_tokens)
        if sequence.is_pooled and plan.samples[-1]:
            plan.samples[-1] = False
            sequence.num_pending = 0

    def _take(self, plan: BatchPlan, sequences: list[Sequence], sequence: Sequence, num_tokens: int) -> None:
        """Put a sequence's next tokens into the plan, and count them as computed."""
        start = sequence.num_computed_tokens
        sequence.num_computed_tokens = start + num_tokens
        samples = sequence.num_computed_tokens == sequence.num_tokens
        plan.rows.append(sequence.row)
        plan.starts.append(start)
        plan.num_tokens.append(num_tokens)
        plan.samples.append(samples)
        plan.awaits_masks |= samples and sequence.constraint is not None
        sequences.append(sequence)
        if num_tokens > 1:
            self._prefixes.remember(sequence)  # at once, so that a twin in this very step shares these blocks
        sequence.num_pending += samples

    def _grow(self, sequence: Sequence, plan: BatchPlan) -> bool:
        """One more block for a sequence, from the last running ones if need be. False if that is itself."""
        while self._pool.num_free == 0:
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        plan.block_appends.append((sequence.row, len(sequence.block_table), block := self._pool.allocate()))
        sequence.block_table.append(block)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the queue, before its equals, to be recomputed."""
        self._preemptions += 1
        self._release(sequence)
        sequence.num_computed_tokens = 0
        sequence.num_remembered_blocks = 0
        if sequence.wants_prompt_logprobs:
            sequence.prompt_logprobs.clear()  # its prompt starts over
        self._waiting.put_back(sequence)

    # --- recording ----------------------------------------------------------------------------------------------------

    def _append(self, sequence: Sequence, token: int, logprobs: LogprobRow | None) -> TokenOutput:
        sequence.token_ids.append(token)
        self._prefixes.remember(sequence)
        finish, error = finish_of(sequence, token)
        if finish:
            self._end(sequence)
        self._generated_tokens += sequence.params.max_tokens != 0
        output = token_output(sequence, token, logprobs, finish, error)
        sequence.reported = True
        return output

    def _embedded(self, sequence: Sequence, vector: bytes) -> TokenOutput:
        self._end(sequence)
        return vector_output(sequence, vector)

    def _end(self, sequence: Sequence) -> None:
        sequence.finished = True
        del self._by_key[sequence.key]
        if sequence.row >= 0:
            self._release(sequence)
        else:  # not admitted yet, or preempted while the step that sampled its last token was in flight
            self._waiting.remove(sequence)

    def _release(self, sequence: Sequence) -> None:
        """Give back row and blocks. A step in flight may still write there; whoever gets them next writes later."""
        self._running.remove(sequence)
        self._free_rows.append(sequence.row)
        sequence.row = -1
        self._pool.release(reversed(sequence.block_table))
        sequence.block_table = []


def _priority(sequence: Sequence) -> int:
    return sequence.priority
