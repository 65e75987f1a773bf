"""Which implementation of the sampler's core a device uses. The seam at which a faster one replaces a slower one.

Imports kernels only when their device asks, because numba and Triton bring seconds of import and compile time along.
"""

import importlib.util
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from engines.native.sampling import torch_core


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


@dataclass(frozen=True, slots=True)
class SamplingOps:
    """The functions of torch_core.py, which says what each means, in one implementation."""

    greedy: Greedy
    sample_core: SampleCore
    mask_typical: MaskTypical


TORCH_OPS = SamplingOps(torch_core.greedy, torch_core.sample_core, torch_core.mask_typical)


def sampling_ops(device: torch.device) -> SamplingOps:
    """The fastest implementation for `device`. On a CPU the first call on a machine compiles for several seconds."""
    if device.type == "cpu":
        return _numba_ops()
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        return _triton_ops()
    return TORCH_OPS


def _numba_ops() -> SamplingOps:
    from engines.native.kernels import cpu_sampler

    return SamplingOps(cpu_sampler.greedy, cpu_sampler.sample_core, cpu_sampler.mask_typical)


def _triton_ops() -> SamplingOps:
    from engines.native.kernels import triton_sampler

    return replace(TORCH_OPS, sample_core=triton_sampler.sample_core)
