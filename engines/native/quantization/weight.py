"""A weight matrix kept in few bits: codes, and a scale (or a scale and an offset) for each group of columns.

Owns the value that all schemes share, and its meaning in plain PyTorch: the oracle of every kernel. How codes are
chosen, and what a code stands for, is each scheme's own file. Knows no kernel, no checkpoint and no rank; groups lie
within a row, so a matrix may be cut between any two rows and between any two groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from engines.errors import EngineUnavailable

_LEAST_COST = 1e-6  # of the costliest column of a group: what is never used still stays near what it was


class Format(NamedTuple):
    """What codes stand for. Two weights of one format and one group size can be joined."""

    name: str
    codes_per_item: int  # columns of the matrix in one element of the tensor of codes
    alignment: int  # columns that are stored together: a cut falls on a multiple of them
    decode: Callable[[Tensor], Tensor]  # codes [N, K / codes_per_item] to float32 [N, K]


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """weight[n, k] = decode(codes)[n, k] * scales[n, k // group_size] + offsets[n, k // group_size].

    One group as wide as the matrix is a scale per output channel.
    """

    format: Format
    codes: Tensor  # [N, K / codes_per_item], the format's own dtype
    scales: Tensor  # [N, groups], floating
    offsets: Tensor | None = None  # [N, groups], floating

    @property
    def shape(self) -> tuple[int, int]:
        return self.num_rows, self.num_columns

    @property
    def num_rows(self) -> int:
        return self.codes.shape[0]

    @property
    def num_columns(self) -> int:
        return self.codes.shape[1] * self.format.codes_per_item

    @property
    def group_size(self) -> int:
        return self.num_columns // self.scales.shape[1]

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.codes, self.scales, self.offsets) if tensor is not None)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix [N, K], computed in float32 and rounded once."""
        values = self.format.decode(self.codes).unflatten(1, (self.scales.shape[1], -1))
        values = values * self.scales.float().unsqueeze(2)
        if self.offsets is not None:
            values = values + self.offsets.float().unsqueeze(2)
        return values.flatten(1).to(dtype)

    def part(self, rows: slice, columns: slice) -> QuantizedWeight:
        """A rank's share, which shares storage. Raises EngineUnavailable where a cut falls within a group."""
        start, stop, _ = columns.indices(self.num_columns)
        if (start, stop) == (0, self.num_columns):
            groups, items = slice(None), slice(None)
        else:
            unit = self.format.alignment
            if self.scales.shape[1] > 1:
                unit = max(unit, self.group_size)
                groups = slice(start // self.group_size, stop // self.group_size)
            else:
                groups = slice(None)
            if start % unit or stop % unit:
                raise EngineUnavailable(
                    f"Columns {start} to {stop} of a {self.format.name} weight with groups of {unit} cannot be split "
                    "off: the cut falls within a group; use fewer ranks."
                )
            per_item = self.format.codes_per_item
            items = slice(start // per_item, stop // per_item)
        offsets = None if self.offsets is None else self.offsets[rows, groups]
        return replace(self, codes=self.codes[rows, items], scales=self.scales[rows, groups], offsets=offsets)

    def to(self, device: torch.device) -> QuantizedWeight:
        """On another device, contiguous: what kernels take."""
        move = lambda tensor: None if tensor is None else tensor.to(device).contiguous()  # noqa: E731
        return replace(self, codes=move(self.codes), scales=move(self.scales), offsets=move(self.offsets))

    def joins(self, other: QuantizedWeight) -> bool:
        """Whether `join` takes both: the same format, groups and kind of scale."""
        return (
            self.format.name == other.format.name
            and self.scales.shape[1:] == other.scales.shape[1:]
            and self.scales.dtype == other.scales.dtype
            and (self.offsets is None) == (other.offsets is None)
        )


def join(parts: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """Parts stacked by rows."""
    if len(parts) == 1:
        return parts[0]
    assert all(parts[0].joins(part) for part in parts)
    offsets = [part.offsets for part in parts if part.offsets is not None]
    return replace(
        parts[0],
        codes=torch.cat([part.codes for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        offsets=torch.cat(offsets) if offsets else None,
    )


class Quantizer(Protocol):
    """A scheme of `--quantize`, with its settings."""

    name: str
    group_size: int  # columns that share a scale; 0: a whole row does
    weighs_columns: bool  # whether `moments` makes it choose better; then the loader measures them
    spreads_errors: bool  # whether it wants to know how columns go along; else `moments` are of each column alone

    def quantize(self, weight: Tensor, moments: Tensor | None = None, /) -> QuantizedWeight | Tensor:
        """A matrix [N, K] of any floating dtype, on its device. Rows are independent.

        moments [pieces, K / pieces, K / pieces] float32: how the columns of the layer's input go along with each other,
        see feedback.second_moments; None: each column counts the same. Without spreads_errors groups are independent
        too. A scheme that only keeps what a checkpoint holds leaves the others as they are.
        """
        ...

    def quantize_values(self, weight: Tensor, moments: Tensor | None = None, /) -> QuantizedWeight | Tensor:
        """The same for the projection that makes attention's values, which is small and whose errors cost much."""
        ...

    def quantize_head(self, weight: Tensor, /) -> QuantizedWeight | Tensor:
        """The same for the LM head, which all schemes keep in eight bits."""
        ...


class AsStored:
    """See Quantizer. For checkpoints that are quantized already: what they left plain stays plain."""

    group_size = 0
    weighs_columns = spreads_errors = False

    def __init__(self, name: str) -> None:
        self.name = name

    def quantize(self, weight: Tensor, _moments: Tensor | None = None, /) -> Tensor:
        return weight

    quantize_values = quantize_head = quantize


def check_groups(scheme: str, group_size: int, num_columns: int, name: str) -> None:
    """Raises EngineUnavailable naming the group size and the width that it does not divide."""
    if group_size and num_columns % group_size:
        raise EngineUnavailable(
            f"quantize: {scheme} in groups of {group_size} does not fit {name}, which has {num_columns} input columns "
            f"here: {group_size} does not divide {num_columns}. Pass another quantize_group_size or scheme.",
            field="quantize_group_size",
        )


def column_costs(moments: Tensor | None, group_size: int, device: torch.device) -> Tensor:
    """What squared errors cost in each column by its own mean square: [1, groups, group_size] float32, or [1, 1,
    group_size]."""
    if moments is None:
        return torch.full((1, 1, group_size), 1 / group_size, device=device)
    squares = moments.diagonal(dim1=1, dim2=2).clamp(min=torch.finfo(torch.float32).tiny)
    return relative_costs(squares.reshape(1, -1, group_size))


def relative_costs(costs: Tensor) -> Tensor:
    """What squared errors cost within a group, [1, groups, group_size] float32, in parts of 1."""
    costs = (costs / costs.amax(2, keepdim=True)).clamp(min=_LEAST_COST)
    return costs / costs.sum(2, keepdim=True)


def row_scales(weight: Tensor, largest: float) -> Tensor:
    """The scale [N, 1] float32 of each row that puts its largest magnitude at `largest`; 1 for a row of zeros."""
    scales = weight.float().abs().amax(dim=1, keepdim=True) / largest
    return torch.where(scales > 0, scales, torch.ones_like(scales))
