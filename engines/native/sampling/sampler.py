"""The sampler: logits in, one token per row out, everything on the device and for the whole batch at once.

This is the one place that says in which order a request's parameters act. For each row:

    1. log-probabilities are taken from the logits as the model gave them
    2. logit_bias            added
    3. bad_words             the token that would complete one gets -inf
    4. min_tokens            stop tokens get -inf until enough tokens are generated
    5. repetition_penalty    tokens of prompt and output: divided where positive, multiplied where negative
    6. frequency_penalty, presence_penalty    generated tokens: subtracted
    7. watermark, green list    adds delta to the logits of green tokens
    8. allowed_token_ids, grammar    what is not allowed gets -inf; of what is, bans yield rather than leave nothing
    9. temperature           divides; 0 takes the largest logit and ends here
   10. min_p                 keeps what is at least min_p times as likely as the likeliest token
   11. typical_p             keeps the most typical tokens
   12. top_k                 keeps the k likeliest
   13. top_p                 keeps the likeliest tokens that reach top_p of what top_k left
   14. watermark, synthid    lets what is kept compete, which leaves it the same on average over keys
   15. one token is drawn: the largest log-probability plus Gumbel noise keyed by seed, position and token id, or, for
       the watermark gumbel, by its key, the tokens before and token id

Only step 7 and a ban act on greedy rows; what a later watermark would mark is the draw, and they have none. No mark can
bring back a token that was banned or filtered.

All but typical_p is in vLLM's order (bias and bans commute), so parameters tuned there mean the same here. Hugging
Face and TGI put min_p and typical_p last: that differs only where one of them is combined with top_k or top_p.

"Keeps" is exact: the smallest set of best tokens that meets the target, at least one; of equally good tokens the lowest
ids. What a row gets depends on that row alone, never on its place in the batch or on its company.

The sampler derives from the batch which passes any row needs, and keeps that until the batch changes: a step of greedy
rows is one argmax. It waits for nothing on the device.

Where a model is split over ranks, each rank has its own tokens' logits; see vocab_split.py.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from engines.native.sampling import logits_processors
from engines.native.sampling import state as columns
from engines.native.sampling.batch import DeviceMasks, NoiseKeys, SamplingBatch
from engines.native.sampling.logits_processors import LogitsProcessor
from engines.native.sampling.logprobs import Logprobs, score
from engines.native.sampling.ops import SamplingOps
from engines.native.sampling.state import Feature, SamplingState, on_device
from engines.native.sampling.vocab_split import VocabSplit
from engines.native.sampling.watermark import MarkTokens, Tournament

PROCESSORS: tuple[type[LogitsProcessor], ...] = (
    logits_processors.LogitBias,
    logits_processors.BadWords,
    logits_processors.MinTokens,
    logits_processors.RepetitionPenalty,
    logits_processors.OccurrencePenalties,
    MarkTokens,
    logits_processors.AllowedTokens,
)
"""Steps 2 to 8 but for the grammar, in the order in which they run. Which keys a 15 uses is decided in 7."""

FILTERS: tuple[type[LogitsProcessor], ...] = (logits_processors.TypicalP, Tournament)
"""Step 11 and, for rows that have a 14, 10 to 14."""


@dataclass(frozen=True, slots=True)
class SamplerOutput:
    """What a step sampled, on the device. token_ids: [B] int64; logprobs: of the rows that asked, None if none did."""

    token_ids: Tensor
    logprobs: Logprobs | None


@dataclass(frozen=True, slots=True)
class CoreParams:
    """Steps 9 to 15 of a batch with a random row: arguments of SamplingOps.sample_core, [B] each, None = off."""

    temperature: Tensor  # float32
    top_k: Tensor | None  # int64
    top_p: Tensor | None  # float32
    min_p: Tensor | None  # float32
    seeds: Tensor  # int64


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """What a batch of rows needs, derived from the state at `version`."""

    row_list: list[int]
    version: int
    processors: list[LogitsProcessor]  # before the grammar
    filters: list[LogitsProcessor]  # after it
    core: CoreParams | None  # None: every row is greedy
    logprobs_at: list[int]  # batch positions of the rows that want log-probabilities
    logprobs_index: Tensor  # [n] int64, the same on the device
    logprobs_counts: list[int]

    @property
    def compares_only(self) -> bool:
        """Whether the best token is all that any row needs to know of the distribution."""
        core = self.core
        filtered = core is not None and not (core.top_k is core.top_p is core.min_p is None)
        return not (self.processors or self.filters or self.logprobs_at or filtered)


class Sampler:
    """With a `split`, logits everywhere are those of this rank's tokens."""

    def __init__(self, state: SamplingState, ops: SamplingOps, split: VocabSplit | None = None) -> None:
        self.state = state
        self.split = split
        self.ops = ops
        self._plan: SamplingPlan | None = None

    def sample(
        self,
        logits: Tensor,
        *,
        rows: Tensor,
        row_list: list[int],
        positions: Tensor,
        token_table: Tensor,
        lengths: Tensor,
        length_list: list[int],
        masks: DeviceMasks | None = None,
    ) -> SamplerOutput:
        """One token for each row of logits [B, vocab_size] float32, contiguous; their content is lost.

        masks: of the rows that a grammar limits. The other arguments are the fields of SamplingBatch.
        """
        batch = SamplingBatch(
            rows=rows,
            positions=positions,
            lengths=lengths,
            token_table=token_table,
            row_list=row_list,
            length_list=length_list,
            noise=NoiseKeys(positions, positions),
        )
        plan = self._plan_for(batch)
        if self.split is not None:
            if plan.compares_only and masks is None:
                return SamplerOutput(self._compare(logits, plan.core, positions, self.split), None)
            logits = self.split.whole(logits)
        assert logits.shape == (len(row_list), self.state.vocab_size), "logits do not fit the batch"
        if plan.core is not None:
            batch.noise.seeds = plan.core.seeds
        distribution = logits[plan.logprobs_index].log_softmax(dim=1) if plan.logprobs_at else None
        for processor in plan.processors:
            processor.apply(logits, batch)
        if masks is not None:
            self.ops.mask_tokens(logits, masks.at, masks.bits)
        for processor in plan.filters:
            processor.apply(logits, batch)
        token_ids = self._choose(logits, plan.core, batch.noise)
        if self.split is not None:
            self.split.agree(token_ids)
        if distribution is None:
            return SamplerOutput(token_ids, None)
        chosen = token_ids[plan.logprobs_index]
        return SamplerOutput(token_ids, score(distribution, chosen, plan.logprobs_at, plan.logprobs_counts))

    def _compare(self, logits: Tensor, core: CoreParams | None, positions: Tensor, split: VocabSplit) -> Tensor:
        if core is None:
            return split.choose(logits, None, None, None)
        return split.choose(logits, core.temperature, core.seeds, positions)

    def _choose(self, logits: Tensor, core: CoreParams | None, noise: NoiseKeys) -> Tensor:
        if core is None:
            return self.ops.greedy(logits)
        return self.ops.sample_core(
            logits, core.temperature, core.top_k, core.top_p, core.min_p, noise.seeds, noise.positions
        )

    def _plan_for(self, batch: SamplingBatch) -> SamplingPlan:
        plan = self._plan
        if plan is None or plan.version != self.state.version or plan.row_list != batch.row_list:
            plan = self._plan = self._make_plan(batch)
        return plan

    def _make_plan(self, batch: SamplingBatch) -> SamplingPlan:
        state = self.state
        row_list = list(batch.row_list)
        features = state.features[row_list]
        union = int(np.bitwise_or.reduce(features))
        processors, filters = (
            [
                kind.build(state, row_list, np.flatnonzero(features & kind.feature).tolist(), self.ops)
                for kind in kinds
                if union & kind.feature
            ]
            for kinds in (PROCESSORS, FILTERS)
        )
        logprobs_at = np.flatnonzero(features & Feature.LOGPROBS)
        return SamplingPlan(
            row_list=row_list,
            version=state.version,
            processors=processors,
            filters=filters,
            core=self._core_params(batch.rows, features, union) if union & Feature.RANDOM else None,
            logprobs_at=logprobs_at.tolist(),
            logprobs_index=on_device(logprobs_at, state.device),
            logprobs_counts=[state.params(row_list[i]).logprobs for i in logprobs_at],
        )

    def _core_params(self, rows: Tensor, features: np.ndarray, union: int) -> CoreParams:
        floats = self.state.floats.index_select(1, rows)
        ints = self.state.ints.index_select(1, rows)
        if union & Feature.TOURNAMENT:  # whose tokens are filtered before they compete, and not again
            filtered = on_device((features & Feature.TOURNAMENT) != 0, self.state.device)
            ints[columns.TOP_K].masked_fill_(filtered, 0)
            floats[columns.TOP_P].masked_fill_(filtered, 1.0)
            floats[columns.MIN_P].masked_fill_(filtered, 0.0)
        return CoreParams(
            temperature=floats[columns.TEMPERATURE],
            top_k=ints[columns.TOP_K] if union & Feature.TOP_K else None,
            top_p=floats[columns.TOP_P] if union & Feature.TOP_P else None,
            min_p=floats[columns.MIN_P] if union & Feature.MIN_P else None,
            seeds=ints[columns.SEED],
        )
