"""What layers are built with, and the ledger they keep while being built: which checkpoint tensor goes where.

Owns the shard arithmetic and the slots. A slot's pieces are views into the layers' own tensors, so that a loader writes
each checkpoint tensor, or the part of it that this rank needs, straight to its final place, fused or not. Knows no file
format, no model and no way of communication.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from engines.errors import EngineUnavailable
from engines.native.kernels.ops import Ops
from engines.native.layers.index import Index
from engines.native.quantization.pending import PendingRows, PendingWeight
from engines.native.quantization.weight import Quantizer, check_groups

if TYPE_CHECKING:
    from engines.native.distributed.group import RankGroup
    from engines.native.layers.linear import Linear


@dataclass(frozen=True, slots=True)
class Shard:
    """This process's place among the ranks that split a model between them."""

    rank: int = 0
    world_size: int = 1

    def take(self, units: int, name: str) -> slice:
        """This rank's share of `units` (heads, channels). Fewer units than ranks are replicated among neighbours.

        Raises EngineUnavailable where neither number divides the other.
        """
        if units % self.world_size == 0:
            share = units // self.world_size
            return slice(self.rank * share, (self.rank + 1) * share)
        if self.world_size % units == 0:
            unit = self.rank // (self.world_size // units)
            return slice(unit, unit + 1)
        raise EngineUnavailable(f"{name}: {units} cannot be split over {self.world_size} ranks.", field=name)

    def take_rows(self, rows: int) -> slice:
        """This rank's share of rows that need not split evenly, such as a vocabulary's: the last ranks have fewer."""
        share = -(-rows // self.world_size)
        return slice(min(self.rank * share, rows), min((self.rank + 1) * share, rows))


class Piece(NamedTuple):
    """A part of a checkpoint tensor and the view that it fills."""

    source: Index
    target: Tensor | PendingRows


@dataclass(frozen=True, slots=True)
class WeightSlot:
    """One checkpoint tensor: its whole shape and what this rank needs of it."""

    shape: tuple[int, ...]
    pieces: list[Piece]


@dataclass(frozen=True, slots=True)
class LayerContext:
    """Where and how a model's tensors are made. `slots` and `linears` grow while layers are built."""

    ops: Ops
    device: torch.device
    dtype: torch.dtype  # of activations, norm weights and biases
    weight_dtype: torch.dtype  # of matrices and the embedding table
    shard: Shard = Shard()
    quantizer: Quantizer | None = None  # of linear layers' matrices, as they are loaded
    group: RankGroup | None = None  # who sums over the ranks, where there are several
    slots: dict[str, WeightSlot] = field(default_factory=dict[str, WeightSlot])
    linears: list[Linear] = field(default_factory=list["Linear"])

    def matrix(self, rows: int, columns: int) -> Tensor:
        """Unset [rows, columns] in the matrices' dtype."""
        return torch.empty(rows, columns, dtype=self.weight_dtype, device=self.device)

    def linear_matrix(self, rows: int, columns: int, name: str) -> Tensor | PendingWeight:
        """Unset [rows, columns] of the linear layer `name`, quantized as it is loaded where that was asked for."""
        if self.quantizer is None:
            return self.matrix(rows, columns)
        check_groups(self.quantizer.name, self.quantizer.group_size, columns, name)
        return PendingWeight(rows, columns, self.quantizer, self.weight_dtype, self.device)

    def vocabulary(self, name: str, vocab_size: int, hidden_size: int) -> Tensor:
        """Enters and returns this rank's rows of a [vocab_size, hidden_size] table."""
        rows = self.shard.take_rows(vocab_size)
        table = self.matrix(rows.stop - rows.start, hidden_size)
        self.enter_piece(name, (vocab_size, hidden_size), (rows, slice(0, hidden_size)), table)
        return table

    def vector(self, size: int) -> Tensor:
        """Unset [size] in the activations' dtype."""
        return torch.empty(size, dtype=self.dtype, device=self.device)

    def enter(self, name: str, target: Tensor) -> None:
        """A checkpoint tensor that fills `target` as a whole."""
        self.enter_piece(name, tuple(target.shape), tuple(slice(0, size) for size in target.shape), target)

    def enter_piece(self, name: str, shape: tuple[int, ...], source: Index, target: Tensor | PendingRows) -> None:
        """`source` of the checkpoint tensor `name`, whose whole shape is `shape`, fills `target`."""
        slot = self.slots.setdefault(name, WeightSlot(shape, []))
        assert slot.shape == shape, f"{name} is entered with two shapes: {slot.shape} and {shape}"
        slot.pieces.append(Piece(source, target))

    def weight_bytes(self) -> int:
        """Memory of everything entered so far."""
        return sum(piece.target.nbytes for slot in self.slots.values() for piece in slot.pieces)
