"""Linear layers, whole or split over ranks by output (column parallel) or by input (row parallel).

Owns how fused matrices are assembled and which part of a checkpoint's matrix a rank holds. The product itself is the
ops' business, which may keep the weight in a layout of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor

from engines.native.kernels.ops import LinearWeight
from engines.native.layers.context import LayerContext
from engines.native.quantization.pending import PendingWeight


class Linear:
    """y = x W^T + b: x [num_tokens, K], weight [N, K], bias [N] or None, y [num_tokens, N]."""

    def __init__(
        self,
        context: LayerContext,
        weight: Tensor | PendingWeight,
        bias: Tensor | None = None,
        *,
        splits_columns: bool = False,
    ) -> None:
        self.splits_columns = splits_columns  # over the ranks: a rank's x is a part of the layer's input
        self.weight: LinearWeight = weight
        self.bias = bias
        self._ops = context.ops
        self._quantizer = context.quantizer
        context.linears.append(self)

    @contextmanager
    def multiplied_by(self, stand_in: LinearWeight) -> Iterator[None]:
        """Before `prepare`: the product with another form of the weight, for a while."""
        own, self.weight = self.weight, stand_in
        try:
            yield
        finally:
            self.weight = own

    def prepare(self) -> None:
        """To be called once, after loading: hands the weight to the ops, which keep what they compute with."""
        if isinstance(self.weight, PendingWeight):
            self.weight = self.weight.finish()
        elif self._quantizer is not None:  # a table shared with the embedding, which needs it plain
            self.weight = [self._quantizer.quantize_head(self.weight)]
        self.weight = self._ops.prepare_linear(self.weight)

    def __call__(self, x: Tensor) -> Tensor:
        return self._ops.linear(x, self.weight, self.bias)


class Part(NamedTuple):
    """A group of output features: `units` that must stay whole (heads, channels) of `unit_size` rows each.

    Parts with one name follow each other in one checkpoint tensor.
    """

    name: str
    units: int
    unit_size: int = 1
    makes_values: bool = False  # attention's, whose errors cost more than others'


def column_parallel(context: LayerContext, in_features: int, parts: Sequence[Part], bias: bool) -> Linear:
    """Parts fused along the output, each split over the ranks by its units: one product instead of several."""
    taken = [context.shard.take(part.units, part.name) for part in parts]
    rows = [(share.stop - share.start) * part.unit_size for share, part in zip(taken, parts, strict=True)]
    weight = context.linear_matrix(sum(rows), in_features, parts[0].name)
    bias_vector = context.vector(sum(rows)) if bias else None
    starts: dict[str, int] = {part.name: 0 for part in parts}
    heights = {name: sum(p.units * p.unit_size for p in parts if p.name == name) for name in starts}
    at = 0
    for part, share, size in zip(parts, taken, rows, strict=True):
        first = starts[part.name] + share.start * part.unit_size
        source, target = slice(first, first + size), slice(at, at + size)
        height = heights[part.name]
        columns = slice(0, in_features)
        context.enter_piece(f"{part.name}.weight", (height, in_features), (source, columns), weight[target])
        if part.makes_values and isinstance(weight, PendingWeight):
            weight.value_rows.add(at)
        if bias_vector is not None:
            context.enter_piece(f"{part.name}.bias", (height,), (source,), bias_vector[target])
        starts[part.name] += part.units * part.unit_size
        at += size
    return Linear(context, weight, bias_vector)


def row_parallel(context: LayerContext, inputs: Part, out_features: int, bias: bool) -> Linear:
    """Split over the ranks by input: each rank's product is a summand, and the first rank's holds the bias."""
    share = context.shard.take(inputs.units, inputs.name)
    columns = slice(share.start * inputs.unit_size, share.stop * inputs.unit_size)
    weight = context.linear_matrix(out_features, columns.stop - columns.start, inputs.name)
    shape = (out_features, inputs.units * inputs.unit_size)
    context.enter_piece(f"{inputs.name}.weight", shape, (slice(0, out_features), columns), weight[:])
    bias_vector = None
    if bias:
        bias_vector = context.vector(out_features)
        context.enter(f"{inputs.name}.bias", bias_vector)
    return Linear(context, weight, bias_vector if context.shard.rank == 0 else None, splits_columns=True)
