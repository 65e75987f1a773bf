"""ModelRunner: does what a BatchPlan says. One forward pass, one token per sequence that samples.

Owns the order of a step on the device: apply deltas, prepare inputs, forward, logits, sample, store. Knows nothing of
requests, queues or text.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from engines.native.kv_cache import KVCache
from engines.native.models import CausalLM
from engines.native.row_state import ModelInput, RowState
from engines.native.sampling.prompt_logprobs import prompt_logprobs
from engines.native.sampling.sampler import Sampler, SamplerOutput
from engines.native.types import BatchPlan, LogprobRow, SampledTokens, TokenParams


@dataclass(slots=True)
class Launched:
    """A step that the device is working on."""

    output: SamplerOutput | None
    prompt_logprobs: dict[int, list[LogprobRow]] = field(default_factory=dict[int, list[LogprobRow]])


class ModelRunner:
    """Satisfies `engines.native.core.Runner`."""

    def __init__(self, model: CausalLM, cache: KVCache, rows: RowState, sampler: Sampler) -> None:
        self._model = model
        self._cache = cache
        self._rows = rows
        self._sampler = sampler
        self._prompt_logprobs: dict[int, tuple[int, TokenParams]] = {}  # row -> prompt length, params; few have it

    @torch.inference_mode()
    def launch(self, plan: BatchPlan) -> Launched:
        self._admit(plan)
        if not plan.rows:
            return Launched(None)
        inputs = self._rows.prepare(plan)
        hidden = self._model.forward(inputs.input_ids, inputs.positions, self._cache.layers, inputs.metadata)
        return Launched(self._sample(plan, inputs, hidden), self._score_prompts(plan, hidden))

    def collect(self, launched: Launched) -> SampledTokens:
        """Wait for a launched step's tokens."""
        if launched.output is None:
            return SampledTokens([], prompt_logprobs=launched.prompt_logprobs)
        sampled = launched.output.to_host()
        sampled.prompt_logprobs = launched.prompt_logprobs
        return sampled

    def _admit(self, plan: BatchPlan) -> None:
        self._rows.apply(plan)
        for admission in plan.admissions:
            self._prompt_logprobs.pop(admission.row, None)
            if admission.params.prompt_logprobs >= 0:
                self._prompt_logprobs[admission.row] = (admission.num_prompt_tokens, admission.params)
        if plan.admissions:
            self._sampler.state.set_rows([(a.row, a.params, a.num_prompt_tokens) for a in plan.admissions])

    def _sample(self, plan: BatchPlan, inputs: ModelInput, hidden: Tensor) -> SamplerOutput | None:
        sampling = [index for index, samples in enumerate(plan.samples) if samples]
        if not sampling:
            return None
        logits = self._model.compute_logits(hidden[inputs.sampled_tokens])
        output = self._sampler.sample(
            logits,
            rows=inputs.sampled_rows,
            row_list=[plan.rows[index] for index in sampling],
            positions=inputs.sampled_lengths,
            token_table=self._rows.token_table,
            lengths=inputs.sampled_lengths,
            length_list=[plan.starts[index] + plan.num_tokens[index] for index in sampling],
        )
        self._rows.store(inputs.sampled_rows, inputs.sampled_lengths, output.token_ids)
        return output

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
                logits = self._model.compute_logits(hidden[begin : begin + num_scored])
                scores[index] = prompt_logprobs(logits, targets, params.prompt_logprobs)
        return scores
