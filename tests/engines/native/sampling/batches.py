"""A batch made from plain lists, sampled once: what the runner does, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engines.native.sampling.ops import SamplingOps
from engines.native.sampling.sampler import Sampler, SamplerOutput
from engines.native.sampling.state import SamplingState
from engines.native.types import SampledTokens, TokenParams

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Known:
    """A sequence as the runner knows it."""

    params: TokenParams
    prompt: Sequence[int] = (0,)
    output: Sequence[int] = ()

    @property
    def tokens(self) -> list[int]:
        return [*self.prompt, *self.output]


def sample_batch(
    ops: SamplingOps, logits: Tensor, sequences: Sequence[Known], rows: Sequence[int] | None = None
) -> SamplerOutput:
    """Samples once for the sequences, which live in the given rows of the state (0, 1, ... unless told)."""
    row_list = list(range(len(sequences))) if rows is None else list(rows)
    max_rows = max(row_list) + 1
    state = SamplingState(max_rows, logits.shape[1], CPU)
    state.set_rows([(row, s.params, len(s.prompt)) for row, s in zip(row_list, sequences, strict=True)])
    length_list = [len(s.tokens) for s in sequences]
    # What lies behind a row's length is rubbish, as in a table whose rows are used again.
    token_table = torch.full((max_rows, max(length_list) + 3), 1, dtype=torch.int32)
    for row, sequence in zip(row_list, sequences, strict=True):
        token_table[row, : len(sequence.tokens)] = torch.tensor(sequence.tokens, dtype=torch.int32)
    return Sampler(state, ops).sample(
        logits.clone(),
        rows=torch.tensor(row_list),
        row_list=row_list,
        positions=torch.tensor(length_list),
        token_table=token_table,
        lengths=torch.tensor(length_list),
        length_list=length_list,
    )


def read_back(output: SamplerOutput) -> SampledTokens:
    logprobs = output.logprobs.to_host() if output.logprobs is not None else {}
    return SampledTokens(output.token_ids.tolist(), logprobs)
