"""Checkpoints of a model's body alone: their names lack the `model.` that those of whole models begin with."""

from __future__ import annotations

from torch import Tensor

from engines.native.layers.index import Index
from engines.native.quantization.weight import QuantizedWeight
from engines.native.weights.source import TensorInfo, WeightSource

_PREFIX = "model."


def is_body_alone(source: WeightSource) -> bool:
    return "embed_tokens.weight" in source.tensors


class BodyNames:
    """A WeightSource around another one, under the names of whole models."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self.tensors: dict[str, TensorInfo] = {_PREFIX + name: info for name, info in source.tensors.items()}

    def read(self, name: str, index: Index, target: Tensor) -> None:
        self._source.read(name.removeprefix(_PREFIX), index, target)

    def read_quantized(self, name: str, index: Index) -> QuantizedWeight | None:
        return self._source.read_quantized(name.removeprefix(_PREFIX), index)
