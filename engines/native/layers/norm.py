"""Root-mean-square normalization (arXiv 1910.07467), with the residual addition before it and the product after it."""

from torch import Tensor

from engines.native.layers.context import LayerContext
from engines.native.layers.linear import Linear


class RMSNorm:
    """Over the last dimension, which has `size` elements; the weight is `name`.weight."""

    def __init__(self, context: LayerContext, name: str, size: int, eps: float) -> None:
        self.weight = context.vector(size)
        self.eps = eps
        self._ops = context.ops
        context.enter(f"{name}.weight", self.weight)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(norm(x + residual), x + residual)."""
        return self._ops.add_rms_norm(x, residual, self.weight, self.eps)

    def then_linear(self, x: Tensor, residual: Tensor | None, linear: Linear) -> tuple[Tensor, Tensor]:
        """(linear(norm(x + residual)), x + residual); without a residual the sum is x."""
        return self._ops.norm_linear(x, residual, self.weight, self.eps, linear.weight, linear.bias)

    def then_gated_linear(self, x: Tensor, residual: Tensor | None, linear: Linear) -> tuple[Tensor, Tensor]:
        """The same with silu(first half) * second half of the product in its place."""
        return self._ops.norm_gated_linear(x, residual, self.weight, self.eps, linear.weight, linear.bias)
