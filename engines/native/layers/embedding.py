"""Token embeddings and the head that scores them, split over the ranks by tokens; tied models share one table."""

from torch import Tensor

from engines.native.layers.context import LayerContext
from engines.native.layers.linear import Linear


class Embedding:
    """Rows of a [vocab_size, hidden_size] table, in the activations' dtype, times a constant."""

    def __init__(
        self, context: LayerContext, name: str, vocab_size: int, hidden_size: int, multiplier: float = 1.0
    ) -> None:
        self.table = context.vocabulary(f"{name}.weight", vocab_size, hidden_size)  # this rank's rows
        self._first = context.shard.take_rows(vocab_size).start
        self._group = context.group
        self._dtype = context.dtype
        self._multiplier = multiplier

    def __call__(self, input_ids: Tensor) -> Tensor:
        """input_ids [num_tokens] int64: [num_tokens, hidden_size]."""
        rows = self._rows(input_ids) if self._group is None else self._group.sum(self._own_rows(input_ids))
        return rows if self._multiplier == 1.0 else rows * self._multiplier

    def _rows(self, input_ids: Tensor) -> Tensor:
        return self.table.index_select(0, input_ids).to(self._dtype)

    def _own_rows(self, input_ids: Tensor) -> Tensor:
        """Zeros for tokens that another rank holds."""
        local_ids = input_ids - self._first
        nearest = local_ids.clamp(0, self.table.shape[0] - 1)
        return self._rows(nearest).masked_fill_((nearest != local_ids).unsqueeze(1), 0.0)


class LMHead:
    """hidden [rows, hidden_size] to logits [rows, tokens of this rank] float32, divided by a constant."""

    def __init__(self, context: LayerContext, table: Tensor, divisor: float = 1.0) -> None:
        self._linear = Linear(context, table)
        self._ops = context.ops
        self._divisor = divisor

    def __call__(self, hidden: Tensor) -> Tensor:
        logits = self._ops.logits(hidden, self._linear.weight)
        return logits if self._divisor == 1.0 else logits / self._divisor
