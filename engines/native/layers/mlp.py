"""The gated feed-forward block (SwiGLU, arXiv 2002.05202)."""

from torch import Tensor

from engines.native.layers.context import LayerContext
from engines.native.layers.linear import Part, column_parallel, row_parallel
from engines.native.models.model_config import ModelConfig


class GatedMLP:
    """down(silu(gate(x)) * up(x)), gate and up as one product; `name` is its prefix in the checkpoint."""

    def __init__(self, config: ModelConfig, context: LayerContext, name: str) -> None:
        projections = ("gate_up_proj",) * 2 if config.fused_checkpoint else ("gate_proj", "up_proj")
        parts = [Part(f"{name}.{projection}", config.intermediate_size) for projection in projections]
        self.gate_up_proj = column_parallel(context, config.hidden_size, parts, config.mlp_bias)
        inputs = Part(f"{name}.down_proj", config.intermediate_size)
        self.down_proj = row_parallel(context, inputs, config.hidden_size, config.mlp_bias)
        self._ops = context.ops

    def __call__(self, x: Tensor) -> Tensor:
        """[num_tokens, hidden_size] to the same."""
        return self.down_proj(self._ops.silu_and_mul(self.gate_up_proj(x)))
