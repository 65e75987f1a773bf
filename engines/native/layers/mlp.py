"""The gated feed-forward block (SwiGLU, arXiv 2002.05202), its norm included."""

from torch import Tensor

from engines.native.layers.context import LayerContext
from engines.native.layers.linear import Part, column_parallel, row_parallel
from engines.native.layers.norm import RMSNorm
from engines.native.models.model_config import ModelConfig


class GatedMLP:
    """down(silu(gate(x)) * up(x)) of the normed x, gate and up in one product; `name` is its prefix in checkpoints."""

    def __init__(self, config: ModelConfig, context: LayerContext, name: str, norm: RMSNorm) -> None:
        projections = ("gate_up_proj",) * 2 if config.fused_checkpoint else ("gate_proj", "up_proj")
        parts = [Part(f"{name}.{projection}", config.intermediate_size) for projection in projections]
        self.gate_up_proj = column_parallel(context, config.hidden_size, parts, config.mlp_bias)
        inputs = Part(f"{name}.down_proj", config.intermediate_size)
        self.down_proj = row_parallel(context, inputs, config.hidden_size, config.mlp_bias)
        self.norm = norm

    def __call__(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(down(...) of norm(x + residual), x + residual), all [num_tokens, hidden_size]."""
        activated, residual = self.norm.then_gated_linear(x, residual, self.gate_up_proj)
        return self.down_proj(activated), residual
