"""What the loader sees of any source of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor

from engines.native.layers.index import Index
from engines.native.quantization.weight import QuantizedWeight


class TensorInfo(NamedTuple):
    shape: tuple[int, ...]
    stored_bytes: int  # in the file, for progress


class WeightSource(Protocol):
    """Named tensors under the names that Hugging Face checkpoints give them, in the order in which they are stored."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def read(self, name: str, index: Index, target: Tensor) -> None:
        """Copy the part `index` of a tensor into `target`, which has its shape, converting dtype and device."""
        ...

    def read_quantized(self, name: str, index: Index) -> QuantizedWeight | None:
        """The part `index` of a matrix as the checkpoint quantized it; None where it did not, or where only `read`
        has it. Raises EngineUnavailable where the part cannot be cut out of its groups."""
        ...
