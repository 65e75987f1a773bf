"""Root-mean-square normalization (arXiv 1910.07467), alone or fused with the residual addition before it."""

from torch import Tensor

from engines.native.layers.context import LayerContext


class RMSNorm:
    """Over the last dimension, which has `size` elements; the weight is `name`.weight."""

    def __init__(self, context: LayerContext, name: str, size: int, eps: float) -> None:
        self.weight = context.vector(size)
        self.eps = eps
        self._ops = context.ops
        context.enter(f"{name}.weight", self.weight)

    def __call__(self, x: Tensor) -> Tensor:
        return self._ops.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(norm(x + residual), x + residual)."""
        return self._ops.add_rms_norm(x, residual, self.weight, self.eps)
