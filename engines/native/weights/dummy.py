"""Random weights for benchmarks: the right shapes without a checkpoint."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from engines.native.layers.index import Index
from engines.native.weights.source import TensorInfo

_DEVIATION = 0.02  # of a common initialization: activations neither vanish nor overflow


class DummySource:
    """See WeightSource. A tensor depends on seed, name, shape and kind of device alone, so ranks agree on the whole."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seed: int, device: torch.device) -> None:
        self.tensors = {name: TensorInfo(shape, 2 * torch.Size(shape).numel()) for name, shape in shapes.items()}
        self._seed = seed
        self._device = device

    def read(self, name: str, index: Index, target: Tensor) -> None:
        generator = torch.Generator(self._device).manual_seed(zlib.crc32(name.encode(), self._seed))
        shape = self.tensors[name].shape
        whole = target.shape == shape and target.is_contiguous()
        values = target if whole else torch.empty(shape, dtype=target.dtype, device=target.device)
        values.normal_(0.0, _DEVIATION, generator=generator)
        if name.endswith("norm.weight"):
            values.add_(1.0)
        if not whole:
            target.copy_(values[index])

    def read_quantized(self, name: str, index: Index) -> None:
        """Nothing is quantized here."""
