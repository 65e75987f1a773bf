"""Token embeddings and the head that scores them; tied models share one table."""

from torch import Tensor

from engines.native.layers.context import LayerContext
from engines.native.layers.linear import Linear


class Embedding:
    """Rows of a [vocab_size, hidden_size] table, in the activations' dtype, times a constant."""

    def __init__(
        self, context: LayerContext, name: str, vocab_size: int, hidden_size: int, multiplier: float = 1.0
    ) -> None:
        self.table = context.matrix(vocab_size, hidden_size)
        self._dtype = context.dtype
        self._multiplier = multiplier
        context.enter(f"{name}.weight", self.table)

    def __call__(self, input_ids: Tensor) -> Tensor:
        """input_ids [num_tokens] int64: [num_tokens, hidden_size]."""
        rows = self.table.index_select(0, input_ids).to(self._dtype)
        return rows if self._multiplier == 1.0 else rows * self._multiplier


class LMHead:
    """hidden [rows, hidden_size] to logits [rows, vocab_size] float32, divided by a constant."""

    def __init__(self, context: LayerContext, table: Tensor, divisor: float = 1.0) -> None:
        self._linear = Linear(context, table)
        self._ops = context.ops
        self._divisor = divisor

    def __call__(self, hidden: Tensor) -> Tensor:
        logits = self._ops.logits(hidden, self._linear.weight)
        return logits if self._divisor == 1.0 else logits / self._divisor
