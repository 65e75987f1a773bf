"""A Runner without tensors that remembers what every KV slot holds, and notices a wrong one.

Slot contents are the hash of the whole prefix up to that token, so that a stale, foreign or missing block cannot go
unseen. The next token is a function of the prefix alone, like a model's under greedy decoding.
"""

from __future__ import annotations

from engines.native.types import BatchPlan, SampledTokens


def next_token(prefix: list[int], vocab_size: int) -> int:
    return hash(tuple(prefix)) % vocab_size


class ScriptedRunner:
    def __init__(self, num_blocks: int, block_size: int, vocab_size: int = 50) -> None:
        self.block_size = block_size
        self.vocab_size = vocab_size
        self.num_computed_tokens = 0
        self._slots: list[int | None] = [None] * (num_blocks * block_size)
        self._tokens: dict[int, list[int]] = {}
        self._block_tables: dict[int, list[int]] = {}

    def launch(self, plan: BatchPlan) -> SampledTokens:
        for admission in plan.admissions:
            self._tokens[admission.row] = list(admission.token_ids)
            self._block_tables[admission.row] = []
        for row, position, block in plan.block_appends:
            table = self._block_tables[row]
            assert position == len(table), "block tables grow at their end"
            table.append(block)
        assert len(set(plan.rows)) == len(plan.rows), "a row is scheduled once a step"
        assert all(count == 1 for count in plan.num_tokens[: plan.num_decodes])
        work = list(zip(plan.rows, plan.starts, plan.num_tokens, plan.samples, strict=True))
        for row, start, count, _ in work:  # all of a layer's keys and values are written before any is read
            for position in range(start, start + count):
                self._slots[self._slot(row, position)] = hash(tuple(self._tokens[row][: position + 1]))
        sampled: list[int] = []
        for row, start, count, samples in work:
            tokens = self._tokens[row]
            self.num_computed_tokens += count
            for position in range(start + count):
                assert self._slots[self._slot(row, position)] == hash(tuple(tokens[: position + 1])), "wrong KV"
            if samples:
                assert start + count == len(tokens)
                tokens.append(next_token(tokens, self.vocab_size))
                sampled.append(tokens[-1])
        return SampledTokens(sampled)

    def collect(self, launched: SampledTokens) -> SampledTokens:
        return launched

    def _slot(self, row: int, position: int) -> int:
        return self._block_tables[row][position // self.block_size] * self.block_size + position % self.block_size
