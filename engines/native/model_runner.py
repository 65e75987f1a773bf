"""ModelRunner: does what a BatchPlan says. One forward pass, one token per sequence that samples, or one vector.

Owns the order of a step on the device: apply deltas, prepare inputs, forward, logits, sample, store. Steps of decodes
alone, and short prefill chunks, replay a CUDA graph where there is one. Knows nothing of requests, queues or text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from engines.native.chunk_graphs import ChunkGraphs
from engines.native.chunking import StepSizes
from engines.native.cuda_graphs import DecodeGraphs, StepGraph
from engines.native.grammar.constraint import TokenMasks
from engines.native.kv_cache import KVCache
from engines.native.models import CausalLM
from engines.native.pooling import ChunkPooling, Embedded
from engines.native.row_state import ModelInput, RowState
from engines.native.sampling.batch import DeviceMasks
from engines.native.sampling.logprobs import Logprobs
from engines.native.sampling.prompt_logprobs import prompt_logprobs
from engines.native.sampling.sampler import Sampler
from engines.native.sampling.state import Feature, on_device
from engines.native.staging import HostCopy, Staging
from engines.native.types import BatchPlan, LogprobRow, SampledTokens, TokenParams

_SCORED_AT_ONCE = 256  # prompt tokens whose logits are held at a time
_FILTERS = Feature.TOP_K | Feature.TOP_P | Feature.MIN_P
_IN_GRAPH = Feature.RANDOM | _FILTERS


class HostTokens:
    """Sampled token ids on their way to the host. kept: which of them are wanted, where not all are."""

    def __init__(self, token_ids: Tensor, kept: list[int] | None = None) -> None:
        self._kept = kept
        self._copy = HostCopy(token_ids)

    def to_list(self) -> list[int]:
        token_ids = self._copy.wait().tolist()
        return token_ids if self._kept is None else [token_ids[i] for i in self._kept]


Choose = Callable[["Launched", DeviceMasks | None], None]
"""Samples a step's tokens from the logits that its forward pass leaves on the device."""


@dataclass(slots=True)
class Launched:
    """A step that the device is working on. One without tokens to wait for has `computed` instead."""

    tokens: HostTokens | None = None
    logprobs: Logprobs | None = None
    prompt_logprobs: dict[int, list[LogprobRow]] = field(default_factory=dict[int, list[LogprobRow]])
    embedded: Embedded | None = None
    choose: Choose | None = None  # set while the step waits to be told which tokens are allowed
    computed: torch.cuda.Event | None = None


class ModelRunner:
    """Satisfies `engines.native.core.Runner`."""

    def __init__(
        self,
        model: CausalLM,
        cache: KVCache,
        rows: RowState,
        sampler: Sampler,
        graphs: DecodeGraphs | None = None,
        chunk_graphs: ChunkGraphs | None = None,
    ) -> None:
        self._model = model
        self._cache = cache
        self._rows = rows
        self._sampler = sampler
        self._graphs = graphs
        self._chunk_graphs = chunk_graphs
        self._pooling = ChunkPooling()
        self._masks = Staging(rows.device)
        self._prompt_logprobs: dict[int, tuple[int, TokenParams]] = {}  # row -> prompt length, params; few have it

    @property
    def step_sizes(self) -> StepSizes:
        """Of steps with prefill tokens."""
        return self._chunk_graphs.sizes if self._chunk_graphs is not None else StepSizes()

    @property
    def largest_chunk(self) -> int | None:
        """Prefill tokens beyond which two steps are faster than one, if there is such a number."""
        return self._chunk_graphs.largest_chunk if self._chunk_graphs is not None else None

    @property
    def token_s(self) -> float:
        """What a step of one token takes; 0 where that was not measured."""
        return self._graphs.token_s if self._graphs is not None else 0.0

    @torch.inference_mode()
    def launch(self, plan: BatchPlan) -> Launched:
        self._admit(plan)
        if not plan.rows:
            return Launched()
        launched = self._launch(plan)
        if self._rows.device.type == "cuda" and not any(plan.samples):
            launched.computed = torch.cuda.Event()
            launched.computed.record()
        return launched

    def _launch(self, plan: BatchPlan) -> Launched:
        if self._graphs is not None and plan.num_decodes == len(plan.rows) <= self._graphs.max_size:
            graph = self._graphs.replay(plan.rows, plan.starts)
            return self._open_graph(plan, graph, list(range(len(plan.rows))))
        all_states = self._scores_prompts(plan) or self._pooling.concerns(plan)
        if self._chunk_graphs is not None and not all_states:
            places = self._chunk_graphs.find(plan)
            if places is not None:
                return self._open_graph(plan, *self._chunk_graphs.replay(plan, places))
        inputs = self._rows.prepare(plan)
        last_tokens = None if all_states or plan.num_decodes == len(plan.rows) else inputs.last_tokens
        hidden = self._model.forward(
            inputs.input_ids, inputs.positions, self._cache.layers, inputs.metadata, last_tokens
        )
        launched = Launched(
            prompt_logprobs=self._score_prompts(plan, hidden), embedded=self._pooling.take(plan, hidden)
        )
        if any(plan.samples):
            states = hidden[inputs.last_tokens] if all_states else hidden
            logits = self._model.compute_logits(states[inputs.sampled_places])
            self._choose(launched, plan, partial(self._sample, plan=plan, inputs=inputs, logits=logits))
        return launched

    @torch.inference_mode()
    def choose(self, launched: Launched, masks: TokenMasks) -> None:
        """Sample what a plan that awaited masks left open."""
        assert launched.choose is not None, "only plans that await masks wait for them"
        choose, launched.choose = launched.choose, None
        device = self._rows.device
        at = on_device(np.array(masks.places, dtype=np.int64), device)
        choose(launched, DeviceMasks(at, self._masks.to_device(masks.bits)) if masks.places else None)

    def _choose(self, launched: Launched, plan: BatchPlan, choose: Choose) -> None:
        if plan.awaits_masks:
            launched.choose = choose
        else:
            choose(launched, None)

    def collect(self, launched: Launched) -> SampledTokens:
        """Wait for a launched step's tokens and vectors; for its end where it has none, or else the host would launch
        all of a long prompt's steps at once, and whoever comes meanwhile would wait for them."""
        if launched.computed is not None:
            launched.computed.synchronize()
        logprobs = launched.logprobs.to_host() if launched.logprobs is not None else {}
        token_ids = launched.tokens.to_list() if launched.tokens is not None else []
        embeddings = launched.embedded.by_place() if launched.embedded is not None else {}
        return SampledTokens(token_ids, logprobs, launched.prompt_logprobs, embeddings)

    def _admit(self, plan: BatchPlan) -> None:
        self._rows.apply(plan)
        for admission in plan.admissions:
            self._prompt_logprobs.pop(admission.row, None)
            self._pooling.admit(admission)
            if admission.params.prompt_logprobs >= 0:
                self._prompt_logprobs[admission.row] = (admission.num_prompt_tokens, admission.params)
        if plan.admissions:
            self._sampler.state.set_rows([(a.row, a.params, a.num_prompt_tokens) for a in plan.admissions])

    def _open_graph(self, plan: BatchPlan, graph: StepGraph, sampled: list[int]) -> Launched:
        """A replayed graph's step; `sampled` are the places in the graph of the sequences that sample."""
        launched = Launched()
        if not sampled:
            return launched
        rows = plan.rows
        if len(sampled) < len(rows):
            rows = [row for row, samples in zip(rows, plan.samples, strict=True) if samples]
        wanted = int(np.bitwise_or.reduce(self._sampler.state.features[rows]))
        masks_parts = plan.awaits_masks and self._sampler.split is not None  # masks are for whole rows of logits
        if not wanted & ~_IN_GRAPH and not masks_parts:
            draw = partial(graph.draw, filtered=bool(wanted & _FILTERS))
            self._choose(launched, plan, partial(self._sample_graph, graph=graph, sampled=sampled, draw=draw))
            return launched
        lengths = [plan.starts[i] + plan.num_tokens[i] for i, samples in enumerate(plan.samples) if samples]
        at, *inputs = self._rows.to_device([sampled, rows, lengths])
        logits = graph.logits[at].float()
        self._choose(launched, plan, partial(self._sample, plan=plan, inputs=_SampledInputs(*inputs), logits=logits))
        return launched

    def _sample_graph(
        self,
        launched: Launched,
        masks: DeviceMasks | None,
        graph: StepGraph,
        sampled: list[int],
        draw: Callable[[], Tensor],
    ) -> None:
        if masks is not None:
            at = self._rows.to_device(sampled)[masks.at]
            self._sampler.ops.mask_tokens(graph.logits, at, masks.bits)
        launched.tokens = HostTokens(draw(), sampled)

    def _sample(
        self,
        launched: Launched,
        masks: DeviceMasks | None,
        plan: BatchPlan,
        inputs: ModelInput | _SampledInputs,
        logits: Tensor,
    ) -> None:
        sampling = [index for index, samples in enumerate(plan.samples) if samples]
        output = self._sampler.sample(
            logits,
            rows=inputs.sampled_rows,
            row_list=[plan.rows[index] for index in sampling],
            positions=inputs.sampled_lengths,
            token_table=self._rows.token_table,
            lengths=inputs.sampled_lengths,
            length_list=[plan.starts[index] + plan.num_tokens[index] for index in sampling],
            masks=masks,
        )
        self._rows.store(inputs.sampled_rows, inputs.sampled_lengths, output.token_ids)
        launched.tokens = HostTokens(output.token_ids)
        launched.logprobs = output.logprobs

    def _scores_prompts(self, plan: BatchPlan) -> bool:
        """Whether some chunk predicts prompt tokens whose log-probabilities are wanted."""
        if not self._prompt_logprobs:
            return False
        return any(
            row in self._prompt_logprobs and start < self._prompt_logprobs[row][0] - 1
            for row, start in zip(plan.rows, plan.starts, strict=True)
        )

    def _score_prompts(self, plan: BatchPlan, hidden: Tensor) -> dict[int, list[LogprobRow]]:
        """Log-probabilities of the prompt tokens that this step's chunks predict, for sequences that asked."""
        scores: dict[int, list[LogprobRow]] = {}
        if not self._prompt_logprobs:
            return scores
        end = 0
        for index, (row, start, count) in enumerate(zip(plan.rows, plan.starts, plan.num_tokens, strict=True)):
            begin, end = end, end + count
            if row not in self._prompt_logprobs:
                continue
            num_prompt_tokens, params = self._prompt_logprobs[row]
            num_scored = min(start + count, num_prompt_tokens - 1) - start
            if num_scored > 0:
                targets = self._rows.token_table[row, start + 1 : start + 1 + num_scored].long()
                scored = hidden[begin : begin + num_scored]
                scores[index] = []
                for some, their in zip(scored.split(_SCORED_AT_ONCE), targets.split(_SCORED_AT_ONCE), strict=True):
                    logits = self._model.compute_logits(some)
                    if self._sampler.split is not None:
                        logits = self._sampler.split.whole(logits)
                    scores[index] += prompt_logprobs(logits, their, params.prompt_logprobs)
        return scores


@dataclass(frozen=True, slots=True)
class _SampledInputs:
    """The part of ModelInput that sampling needs, after a graph."""

    sampled_rows: Tensor  # [n] int64
    sampled_lengths: Tensor  # [n] int64
