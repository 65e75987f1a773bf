"""One sequence's whole state on the host: the scheduler's own noun, and nobody else changes it but its prefix cache.

Token counts, all from the start of the sequence:

    |<----- num_computed_tokens ----->|            KV written, or being written by a step in flight
    |<----------------- len(token_ids) ----------->|     known on the host: prompt, then generated
    |<----------------- num_tokens ------------------>|  plus num_pending: sampled, on the device only

`num_cached_tokens` says how much of `num_computed_tokens` the prefix cache gave; it is a report, not a state.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from engines.native.block_pool import BlockHash
from engines.native.grammar.constraint import TokenConstraint
from engines.native.types import LAST_TOKEN, LogprobRow, TokenParams

SequenceKey = tuple[bytes, int]  # (client identity, the client's seq_id)


@dataclass(slots=True, eq=False)
class Sequence:
    """`row` is its place in the runner's device-resident state, -1 while it waits."""

    key: SequenceKey
    token_ids: list[int]
    num_prompt_tokens: int
    params: TokenParams
    salt: str = ""
    priority: int = 0  # the lowest first
    row: int = -1
    num_computed_tokens: int = 0
    num_cached_tokens: int = -1
    num_pending: int = 0
    arrived_at: float = field(default_factory=time.monotonic)
    queued_s: float = 0.0  # from its arrival to its first step
    finished: bool = False
    reported: bool = False  # its first output, which carries what is said once, is out
    block_table: list[int] = field(default_factory=list[int])
    block_hashes: list[BlockHash] = field(
        default_factory=list[BlockHash]
    )  # of leading full blocks; outlives preemption
    num_remembered_blocks: int = 0  # leading blocks that the prefix cache knows
    prompt_logprobs: list[LogprobRow] = field(default_factory=list[LogprobRow])  # of prompt tokens 1, 2, ...
    stop_token_ids: frozenset[int] = frozenset()
    max_length: int = field(init=False)  # tokens at which it ends; one beyond the prompt where only that is asked for
    constraint: TokenConstraint | None = None  # what limits its tokens; knows all of token_ids that were generated

    def __post_init__(self) -> None:
        self.stop_token_ids = frozenset(self.params.stop_token_ids)
        # One that is pooled never decodes: it is as long as it gets from the start.
        self.max_length = self.num_prompt_tokens + (0 if self.is_pooled else max(self.params.max_tokens, 1))

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) + self.num_pending

    @property
    def is_pooled(self) -> bool:
        return self.params.pooling is not None

    @property
    def needs_every_token(self) -> bool:
        """Whether tokens found in the prefix cache must be computed all the same: for something is made of each."""
        pooling = self.params.pooling
        return self.wants_prompt_logprobs or (pooling is not None and pooling.mode != LAST_TOKEN)

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.params.prompt_logprobs >= 0 and len(self.prompt_logprobs) < self.num_prompt_tokens - 1
