"""Root-mean-square normalization (arXiv 1910.07467), with the residual addition before it and the product after it.

Where a model is split over ranks, what is to be added to the residual is each rank's summand of it: row-parallel
products are not summed where they are computed but here, so that sum, addition and norm can be one pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from engines.native.layers.context import LayerContext
from engines.native.layers.linear import Linear

if TYPE_CHECKING:
    from engines.native.distributed.group import RankGroup


class RMSNorm:
    """Over the last dimension, which has `size` elements; the weight is `name`.weight."""

    def __init__(self, context: LayerContext, name: str, size: int, eps: float) -> None:
        self.weight = context.vector(size)
        self.eps = eps
        self._ops = context.ops
        self._group = context.group
        context.enter(f"{name}.weight", self.weight)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(norm(x + residual), x + residual)."""
        if self._group is not None:
            return self._summed(x, residual, self._group)
        return self._ops.add_rms_norm(x, residual, self.weight, self.eps)

    def then_linear(self, x: Tensor, residual: Tensor | None, linear: Linear) -> tuple[Tensor, Tensor]:
        """(linear(norm(x + residual)), x + residual); without a residual the sum is x."""
        if self._group is not None and residual is not None:
            fused = self._group.sum_and_norm(x, residual, self.weight, self.eps)
            if fused is not None:
                return linear(fused[0]), fused[1]
            x = self._group.sum(x)
        return self._ops.norm_linear(x, residual, self.weight, self.eps, linear.weight, linear.bias)

    def then_gated_linear(self, x: Tensor, residual: Tensor | None, linear: Linear) -> tuple[Tensor, Tensor]:
        """The same with silu(first half) * second half of the product in its place."""
        if self._group is not None and residual is not None:
            fused = self._group.sum_and_norm(x, residual, self.weight, self.eps)
            if fused is not None:
                return self._ops.gated_linear(fused[0], linear.weight, linear.bias), fused[1]
            x = self._group.sum(x)
        return self._ops.norm_gated_linear(x, residual, self.weight, self.eps, linear.weight, linear.bias)

    def _summed(self, x: Tensor, residual: Tensor, group: RankGroup) -> tuple[Tensor, Tensor]:
        fused = group.sum_and_norm(x, residual, self.weight, self.eps)
        return fused or self._ops.add_rms_norm(group.sum(x), residual, self.weight, self.eps)
