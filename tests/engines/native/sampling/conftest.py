"""Every implementation of the sampler's core."""

from __future__ import annotations

import pytest
import torch

from engines.native.sampling.ops import TORCH_OPS, SamplingOps, sampling_ops


@pytest.fixture(params=["torch", "numba"])
def ops(request: pytest.FixtureRequest) -> SamplingOps:
    return TORCH_OPS if request.param == "torch" else sampling_ops(torch.device("cpu"))
