"""One sequence's whole state on the host: the scheduler's own noun, and nobody else changes it.

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
from engines.native.types import LogprobRow, TokenParams

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
    constraint: TokenConstraint | None = None  # what limits its tokens; knows all of token_ids that were generated

    def __post_init__(self) -> None:
        self.stop_token_ids = frozenset(self.params.stop_token_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) + self.num_pending

    @property
    def max_length(self) -> int:
        """Tokens at which it ends by length; one more than the prompt where only the prompt is asked for."""
        return self.num_prompt_tokens + max(self.params.max_tokens, 1)

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.params.prompt_logprobs >= 0 and len(self.prompt_logprobs) < self.num_prompt_tokens - 1
