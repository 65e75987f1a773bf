"""Which implementation of the sampler's core a device uses. The seam at which a faster one replaces a slower one.

Imports kernels only when their device asks, because numba and Triton bring seconds of import and compile time along.
"""

import importlib.util
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from engines.native.sampling import torch_core, torch_watermark
from engines.native.sampling.torch_watermark import MarkedRows


class Greedy(Protocol):
    def __call__(self, logits: Tensor) -> Tensor: ...


class SampleCore(Protocol):
    def __call__(
        self,
        logits: Tensor,
        temperature: Tensor,
        top_k: Tensor | None,
        top_p: Tensor | None,
        min_p: Tensor | None,
        seeds: Tensor,
        positions: Tensor,
    ) -> Tensor: ...


class MaskTypical(Protocol):
    def __call__(self, logits: Tensor, at: Tensor, temperature: Tensor, min_p: Tensor, typical_p: Tensor) -> None: ...


class MaskFiltered(Protocol):
    def __call__(
        self, logits: Tensor, at: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
    ) -> None: ...


class MarkTokens(Protocol):
    def __call__(
        self,
        logits: Tensor,
        token_table: Tensor,
        rows: Tensor,
        lengths: Tensor,
        marked: MarkedRows,
        seeds: Tensor,
        positions: Tensor,
    ) -> None: ...


class FreshContexts(Protocol):
    def __call__(
        self, token_table: Tensor, rows: Tensor, lengths: Tensor, marked: MarkedRows
    ) -> tuple[Tensor, Tensor]: ...


class Compete(Protocol):
    def __call__(
        self,
        logits: Tensor,
        at: Tensor,
        keys: Tensor,
        is_marked: Tensor,
        temperature: Tensor,
        depths: Tensor,
        num_layers: int,
    ) -> None: ...


class MaskTokens(Protocol):
    def __call__(self, logits: Tensor, at: Tensor, bits: Tensor) -> None: ...


class LocalBest(Protocol):
    def __call__(
        self, logits: Tensor, temperature: Tensor | None, seeds: Tensor | None, positions: Tensor | None, first: int
    ) -> Tensor: ...


class BestOf(Protocol):
    def __call__(self, offers: Tensor, temperature: Tensor | None) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class SamplingOps:
    """The functions of torch_core.py and torch_watermark.py, which say what each means, in one implementation."""

    greedy: Greedy = torch_core.greedy
    sample_core: SampleCore = torch_core.sample_core
    mask_typical: MaskTypical = torch_core.mask_typical
    mask_tokens: MaskTokens = torch_core.mask_tokens
    mask_filtered: MaskFiltered = torch_core.mask_filtered
    mark_tokens: MarkTokens = torch_watermark.mark_tokens
    fresh_contexts: FreshContexts = torch_watermark.fresh_contexts
    compete: Compete = torch_watermark.compete
    local_best: LocalBest = torch_core.local_best
    best_of: BestOf = torch_core.best_of


TORCH_OPS = SamplingOps()


def sampling_ops(device: torch.device) -> SamplingOps:
    """The fastest implementation for `device`. On a CPU the first call on a machine compiles for several seconds."""
    if device.type == "cpu":
        return _numba_ops()
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        return _triton_ops()
    return TORCH_OPS


def _numba_ops() -> SamplingOps:
    from engines.native.kernels import cpu_sampler, cpu_watermark

    return replace(
        TORCH_OPS,
        greedy=cpu_sampler.greedy,
        sample_core=cpu_sampler.sample_core,
        mask_typical=cpu_sampler.mask_typical,
        mask_tokens=cpu_sampler.mask_tokens,
        mask_filtered=cpu_sampler.mask_filtered,
        mark_tokens=cpu_watermark.mark_tokens,
        compete=cpu_watermark.compete,
    )


def _triton_ops() -> SamplingOps:
    from engines.native.kernels import (
        triton_mask,
        triton_sampler,
        triton_tournament,
        triton_vocab_split,
        triton_watermark,
    )

    return replace(
        TORCH_OPS,
        sample_core=triton_sampler.sample_core,
        mask_tokens=triton_mask.mask_tokens,
        mask_filtered=triton_tournament.mask_filtered,
        mark_tokens=triton_watermark.mark_tokens,
        fresh_contexts=triton_watermark.fresh_contexts,
        compete=triton_tournament.compete,
        local_best=triton_vocab_split.local_best,
        best_of=triton_vocab_split.best_of,
    )
