"""Every value that crosses a process or the line between deciding and doing. Leaves: no behaviour, no torch.

Client -> core:  AddSequence, AbortSequences, Hello
Core -> client:  LoadProgress (while starting), Ready, StepOutputs (one per step and client), StepReport, CoreFailed
Core -> runner:  BatchPlan;  runner -> core:  SampledTokens

The wire form is msgpack through msgspec: structs are arrays, tagged by class, and hold no Python objects that the
garbage collector must follow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from engines.step_stats import StepStats

# --- client -> core ---------------------------------------------------------------------------------------------------


GREEN_LIST, GREEN_LIST_SELF, GUMBEL, SYNTHID = range(4)


class Watermark(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How a sequence's tokens are marked; fields that a scheme does not have are without effect. Not to be logged."""

    scheme: int  # one of the four above
    key: int  # 64 bits, from the secret
    context_width: int  # tokens before the marked one that its mark depends on
    threshold: int = 0  # green lists: the share of green tokens, times 2**32
    delta: float = 0.0  # green lists: added to green logits
    depth: int = 0  # SynthID-Text: layers of the tournament, at most 32

    def __repr__(self) -> str:
        return f"Watermark(scheme={self.scheme})"


LAST_TOKEN, MEAN_TOKENS, CLS_TOKEN, MAX_TOKENS = range(4)


class Pooling(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A sequence's hidden states as one vector: those of its last or first token, or the mean or maximum of all."""

    mode: int = LAST_TOKEN  # one of the four above
    normalized: bool = True  # scaled to length 1
    dimensions: int = 0  # the first so many numbers alone, which are then of length 1; 0 = all


class TokenParams(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the core needs to choose tokens and to stop: SamplingParams resolved to numbers, text left outside.

    Stop strings stay with the client, which sees text; the core knows only token ids.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0  # 0 = greedy
    top_k: int = 0  # 0 = off
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0  # noise is a function of (seed, position, token id) alone
    stop_token_ids: tuple[int, ...] = ()  # EOS ids included unless EOS is ignored
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that must not be completed
    logprobs: int = -1  # alternatives per token; -1 = no logprobs
    prompt_logprobs: int = -1
    watermark: Watermark | None = None
    allowed_token_ids: tuple[int, ...] = ()  # () = all
    pooling: Pooling | None = None  # set: nothing is generated, the prompt is made a vector


class Hello(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A client introduces itself; the core answers with LoadProgress and then Ready.

    The process id lets the core free what a client left behind when its process dies.
    """

    process_id: int


class GrammarSpec(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What an answer must match.

    kind: "json_schema" (text is the schema), "regex", "choice" (text is a JSON array of strings), "lark" (as llguidance
    extends it), "grammar" (GBNF or Lark, whichever it reads as).
    """

    kind: str
    text: str


class ThinkingSpec(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Reasoning comes before the answer: a grammar begins to bind after its closing tag.

    `is_inside`: the prompt opened it already; else it may open it, at the very start. `budget`: tokens after which it
    is closed, -1 = no limit.
    """

    opening: str
    closing: str
    is_inside: bool
    budget: int = -1


class AddSequence(msgspec.Struct, frozen=True, tag=True, array_like=True, gc=False):
    """One choice to generate. `seq_id` is unique per client for its lifetime."""

    seq_id: int
    prompt_token_ids: tuple[int, ...]
    params: TokenParams
    cache_salt: str = ""
    grammar: GrammarSpec | None = None
    thinking: ThinkingSpec | None = None
    priority: int = 0  # the lowest first, and among equals the first to come


class AbortSequences(msgspec.Struct, frozen=True, tag=True, array_like=True, gc=False):
    """The client no longer wants these; unknown ids are ignored, since a finish may cross an abort."""

    seq_ids: tuple[int, ...]


ClientMessage = Hello | AddSequence | AbortSequences

# --- core -> client ---------------------------------------------------------------------------------------------------


class LoadProgress(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """`stage` is a word for people ("weights"); `done` of `total`, bytes."""

    stage: str
    done: int
    total: int


class Ready(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The core can answer. What start-up prints and /v1/models tells."""

    model: str
    architecture: str
    device: str
    dtype: str
    attention_backend: str
    vocab_size: int
    max_model_len: int
    block_size: int
    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    weight_bytes: int
    load_s: float
    quantization: str = ""  # of weights and KV cache, in words; empty: none
    tensor_parallel_size: int = 1
    all_reduce: str = ""  # how the ranks sum, in words; empty with one rank
    generates: bool = True  # False: it only embeds
    embedding_size: int = 0  # numbers of a vector

    @property
    def kv_capacity_tokens(self) -> int:
        return self.num_blocks * self.block_size


class LogprobRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One position's log-probabilities: the token's own, and the most likely alternatives, most likely first."""

    token_id: int
    logprob: float
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


class TokenOutput(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one step brought for one sequence.

    `finish`: 0 = goes on, 1 = stop (EOS or stop token), 2 = length, 3 = lost (see `error`), 4 = complete: its grammar
    allows nothing more, so the last token is text, 5 = its grammar is refused (see `error`).
    `cached_tokens` (prefix-cache hits) is -1 except in a sequence's first output.
    """

    seq_id: int
    token_ids: tuple[int, ...]
    finish: int = 0
    logprobs: tuple[LogprobRow, ...] = ()
    cached_tokens: int = -1
    prompt_logprobs: tuple[LogprobRow | None, ...] = ()
    error: str = ""
    queued_s: float = 0.0  # seconds from arrival to its first step; only in a sequence's first output
    embedding: bytes = b""  # little-endian float32; the only output of a sequence that is pooled


FINISH_NONE, FINISH_STOP, FINISH_LENGTH, FINISH_ERROR, FINISH_COMPLETE, FINISH_REFUSED = range(6)


class SchedulerStats(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Gauges (now) and counters (since start)."""

    running: int = 0
    waiting: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    prefix_cache_hit_tokens: int = 0
    prefix_cache_query_tokens: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0


class StepOutputs(msgspec.Struct, frozen=True, tag=True, array_like=True, gc=False):
    """Everything one step brought for one client: one message a step, never one a token."""

    outputs: tuple[TokenOutput, ...]
    stats: SchedulerStats


class StepReport(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """What all steps so far took. Sent now and then, so that it costs steps and requests nothing."""

    steps: StepStats


class CoreFailed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The core cannot go on; `message` is for the operator and says what to change where that is known."""

    message: str


CoreMessage = LoadProgress | Ready | StepOutputs | StepReport | CoreFailed

# --- core <-> runner --------------------------------------------------------------------------------------------------


class Admission(NamedTuple):
    """A sequence enters row `row` of the runner's device-resident state, new or back from preemption."""

    row: int
    token_ids: list[int]  # everything known: prompt, and what was generated before a preemption
    num_prompt_tokens: int
    params: TokenParams


@dataclass(slots=True)
class BatchPlan:
    """One step, decided: who, how many tokens, which blocks. Plain ints, so that it can go to other ranks.

    Scheduled sequence i computes tokens [starts[i], starts[i] + num_tokens[i]) of row rows[i]; it yields a new token
    when samples[i], which is when those are its last known ones. Decodes come first (`rows[:num_decodes]`, one token
    each, all sampling), then prefill chunks. The runner applies `admissions`, then `block_appends`, then computes. A
    decode's input is the last token sampled for its row, which the runner keeps on its device: the plan never holds it.

    `awaits_masks`: some of the sequences that sample are bound to a grammar, so sampling waits for the core to say
    which tokens it allows; the forward pass does not.
    """

    rows: list[int] = field(default_factory=list[int])
    starts: list[int] = field(default_factory=list[int])
    num_tokens: list[int] = field(default_factory=list[int])
    samples: list[bool] = field(default_factory=list[bool])
    num_decodes: int = 0
    awaits_masks: bool = False
    admissions: list[Admission] = field(default_factory=list[Admission])
    block_appends: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    """(row, position in the row's block table, block id)"""


@dataclass(slots=True)
class SampledTokens:
    """One token per scheduled sequence that samples, in the plan's order, on the host.

    `logprobs[i]` belongs to `token_ids[i]` where its sequence asked; `prompt_logprobs[j]` holds, for scheduled sequence
    j, the rows of the prompt positions that its chunk predicted, and `embeddings[j]` its vector where it is pooled and
    this was its last chunk.
    """

    token_ids: list[int]
    logprobs: dict[int, LogprobRow] = field(default_factory=dict[int, LogprobRow])
    prompt_logprobs: dict[int, list[LogprobRow]] = field(default_factory=dict[int, list[LogprobRow]])
    embeddings: dict[int, bytes] = field(default_factory=dict[int, bytes])
