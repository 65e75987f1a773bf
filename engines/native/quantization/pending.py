"""A linear layer's matrix while its checkpoint tensors arrive: each is quantized, and all are joined at the end.

Owns the moment of quantization: as a tensor comes, so that no more of the plain model is ever in memory; or, for
schemes that weigh columns, once the loader knows what the layer's columns are worth. Pieces may arrive in any order and
from several threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engines.native.layers.index import Index
from engines.native.quantization.weight import AsStored, QuantizedWeight, Quantizer, join
from engines.native.weights.source import WeightSource


class PendingWeight:
    """[rows, columns] of one rank; `weight[rows]` is the place of a piece, and all pieces make up the rows."""

    def __init__(self, rows: int, columns: int, quantizer: Quantizer, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = (rows, columns)
        self.quantizer = quantizer
        self.dtype = dtype  # of a piece before it is quantized
        self.device = device
        self.arrived: dict[int, QuantizedWeight | Tensor] = {}  # by first row
        self.value_rows: set[int] = set()  # first rows of pieces that Quantizer.quantize_values is for

    def __getitem__(self, rows: slice) -> PendingRows:
        return PendingRows(self, *rows.indices(self.shape[0])[:2])

    def plain(self) -> list[Tensor]:
        """What has arrived and is not quantized yet, by rows."""
        return [part for _, part in sorted(self.arrived.items()) if isinstance(part, Tensor)]

    def quantize(self, moments: Tensor | None = None) -> None:
        """Quantize what waits for it; see Quantizer.quantize."""
        for start, part in self.arrived.items():
            if isinstance(part, Tensor):
                self.arrived[start] = self.chosen_for(start)(part, moments)

    def chosen_for(self, start: int) -> Callable[[Tensor, Tensor | None], QuantizedWeight | Tensor]:
        """How the piece from row `start` on is quantized."""
        return self.quantizer.quantize_values if start in self.value_rows else self.quantizer.quantize

    def finish(self) -> Sequence[QuantizedWeight | Tensor]:
        """The matrix in as few parts as formats allow, by rows: most often one. To be called once."""
        self.quantize()
        parts: list[QuantizedWeight | Tensor] = []
        runs: list[list[QuantizedWeight | Tensor]] = []
        for _, part in sorted(self.arrived.items()):
            if runs and _joins(runs[-1][0], part):
                runs[-1].append(part)
            else:
                runs.append([part])
        self.arrived.clear()
        for run in runs:
            quantized = [part for part in run if isinstance(part, QuantizedWeight)]
            parts.append(join(quantized) if quantized else torch.cat([p for p in run if isinstance(p, Tensor)]))
        assert sum(part.shape[0] for part in parts) == self.shape[0]
        return parts


class PendingRows(NamedTuple):
    """The place of one piece: rows `start` to `stop`."""

    weight: PendingWeight
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Nothing is allocated yet."""
        return 0

    def fill(self, source: WeightSource, name: str, index: Index, shape: tuple[int, ...]) -> None:
        """Read the part `index` of a checkpoint tensor of that whole shape, quantized there or here.

        A scale for a whole row is that of the row in the checkpoint, so that every number of ranks computes with the
        same codes: the row is read as a whole, and cut afterwards.
        """
        weight = self.weight
        stored = source.read_quantized(name, index) if isinstance(weight.quantizer, AsStored) else None
        if stored is not None:
            weight.arrived[self.start] = stored.to(weight.device)
            return
        whole_rows = weight.quantizer.group_size == 0 and index[1] != slice(0, shape[1])
        columns = slice(0, shape[1]) if whole_rows else index[1]
        plain = torch.empty(
            self.stop - self.start, columns.stop - columns.start, dtype=weight.dtype, device=weight.device
        )
        source.read(name, (index[0], columns), plain)
        if weight.quantizer.weighs_columns:
            weight.arrived[self.start] = plain
            return
        made = weight.chosen_for(self.start)(plain, None)
        if whole_rows:
            made = made[:, index[1]].contiguous() if isinstance(made, Tensor) else made.part(slice(None), index[1])
        weight.arrived[self.start] = made if isinstance(made, Tensor) else made.to(weight.device)


def _joins(first: QuantizedWeight | Tensor, second: QuantizedWeight | Tensor) -> bool:
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return isinstance(first, Tensor) and isinstance(second, Tensor)
    return first.joins(second)
