"""A Runner without tensors that remembers what every KV slot holds, and notices a wrong one.

Slot contents are the hash of the whole prefix up to that token, so that a stale, foreign or missing block cannot go
unseen. The next token is a function of the prefix alone, like a model's under greedy decoding. A pooled sequence's
vector is the tokens that were computed for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engines.native.grammar.constraint import TokenMasks
from engines.native.types import BatchPlan, SampledTokens


def next_token(prefix: list[int], vocab_size: int) -> int:
    return hash(tuple(prefix)) % vocab_size


def allowed_token(prefix: list[int], vocab_size: int, allowed: set[int]) -> int:
    """The first allowed token from the unlimited choice upwards, in a circle."""
    first = next_token(prefix, vocab_size)
    return min(allowed, key=lambda token: (token - first) % vocab_size)


@dataclass
class Launched:
    """`open` holds the rows that sample, as long as they await masks."""

    sampled: list[int] = field(default_factory=list)
    open: list[int] | None = None
    embeddings: dict[int, bytes] = field(default_factory=dict)


class ScriptedRunner:
    def __init__(self, num_blocks: int, block_size: int, vocab_size: int = 50) -> None:
        self.block_size = block_size
        self.vocab_size = vocab_size
        self.num_computed_tokens = 0
        self._slots: list[int | None] = [None] * (num_blocks * block_size)
        self._tokens: dict[int, list[int]] = {}
        self._block_tables: dict[int, list[int]] = {}
        self._pooled: dict[int, list[int]] = {}
        self._open: Launched | None = None

    def launch(self, plan: BatchPlan) -> Launched:
        assert self._open is None, "a step that awaits masks is finished before the next is launched"
        for admission in plan.admissions:
            self._tokens[admission.row] = list(admission.token_ids)
            self._pooled.pop(admission.row, None)
            if admission.params.pooling is not None:
                self._pooled[admission.row] = []
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
        for row, start, count, samples in work:
            tokens = self._tokens[row]
            self.num_computed_tokens += count
            for position in range(start + count):
                assert self._slots[self._slot(row, position)] == hash(tuple(tokens[: position + 1])), "wrong KV"
            assert not samples or start + count == len(tokens)
        launched = Launched(open=[row for row, _, _, samples in work if samples])
        for place, (row, start, count, samples) in enumerate(work):
            if row in self._pooled:
                assert not samples
                assert place >= plan.num_decodes
                self._pooled[row] += self._tokens[row][start : start + count]
                if start + count == len(self._tokens[row]):
                    launched.embeddings[place] = bytes(self._pooled.pop(row))
        if plan.awaits_masks:
            self._open = launched
        else:
            self._sample(launched, {})
        return launched

    def choose(self, launched: Launched, masks: TokenMasks) -> None:
        assert launched is self._open
        self._open = None
        allowed = {
            place: {token for token in range(self.vocab_size) if row[token // 32] >> (token % 32) & 1}
            for place, row in zip(masks.places, masks.bits.tolist(), strict=True)
        }
        self._sample(launched, allowed)

    def _sample(self, launched: Launched, allowed: dict[int, set[int]]) -> None:
        assert launched.open is not None
        everything = set(range(self.vocab_size))
        for place, row in enumerate(launched.open):
            tokens = self._tokens[row]
            tokens.append(allowed_token(tokens, self.vocab_size, allowed.get(place, everything)))
            launched.sampled.append(tokens[-1])
        launched.open = None

    def collect(self, launched: Launched) -> SampledTokens:
        assert launched.open is None, "collected before it was told which tokens are allowed"
        return SampledTokens(launched.sampled, embeddings=launched.embeddings)

    def _slot(self, row: int, position: int) -> int:
        return self._block_tables[row][position // self.block_size] * self.block_size + position % self.block_size
