"""The Llama family: pre-norm decoder, rotary grouped-query attention, gated MLP, one residual stream.

What tells its members apart (biases, QK norm, windows, layers without rotation, multipliers, fused checkpoints) is data
in ModelConfig; see hf_config.FAMILIES for who has what. Tensor names are those of Hugging Face checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from engines.native.layers.attention import Attention
from engines.native.layers.attention_metadata import AttentionMetadata, LastTokens
from engines.native.layers.context import LayerContext
from engines.native.layers.embedding import Embedding, LMHead
from engines.native.layers.mlp import GatedMLP
from engines.native.layers.norm import RMSNorm
from engines.native.layers.rotary import cos_sin_table, identity_table
from engines.native.models.model_config import ModelConfig


class DecoderLayer:
    """Attention, then MLP, each normalized before and added to the residual stream after."""

    def __init__(self, config: ModelConfig, context: LayerContext, layer: int, cos_sin: Tensor) -> None:
        name = f"model.layers.{layer}"
        self.input_norm = RMSNorm(context, f"{name}.input_layernorm", config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, context, f"{name}.self_attn", self.input_norm, layer, cos_sin)
        self.mlp_norm = RMSNorm(context, f"{name}.post_attention_layernorm", config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config, context, f"{name}.mlp", self.mlp_norm)
        self.multiplier = config.residual_multiplier

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        positions: Tensor,
        kv_cache: tuple[Tensor, Tensor],
        metadata: AttentionMetadata,
        last: LastTokens | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x is what the layer before would add to `residual` ([num_tokens, hidden_size] both); the same is returned.

        The addition waits for the next norm, which does both in one pass; so does the sum over ranks of what would be
        added. The first layer has no residual yet. With `last` both have those tokens' rows only.
        """
        x, residual = self.attention(x, residual, positions, kv_cache, metadata, last)
        x, residual = self.mlp(self._scaled(x), residual)
        return self._scaled(x), residual

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.multiplier == 1.0 else x * self.multiplier


class LlamaForCausalLM:
    """See models.CausalLM. Built with unset weights; `max_model_len` tokens is the longest text it will see."""

    def __init__(self, config: ModelConfig, context: LayerContext, max_model_len: int) -> None:
        self.config = config
        self.embed_tokens = Embedding(
            context, "model.embed_tokens", config.vocab_size, config.hidden_size, config.embedding_multiplier
        )
        rotary = cos_sin_table(config.rope, max_model_len, context.device)
        unrotated = rotary if all(config.rope_layers) else identity_table(config.rope, max_model_len, context.device)
        self.layers = [
            DecoderLayer(config, context, layer, rotary if rotates else unrotated)
            for layer, rotates in enumerate(config.rope_layers)
        ]
        self.norm = RMSNorm(context, "model.norm", config.hidden_size, config.rms_norm_eps)
        self.lm_head = None if config.headless else self._head(context)
        self.weight_bytes = context.weight_bytes()

    def _head(self, context: LayerContext) -> LMHead:
        config, table = self.config, self.embed_tokens.table
        if not config.tie_word_embeddings:
            table = context.vocabulary("lm_head.weight", config.vocab_size, config.hidden_size)
        return LMHead(context, table, config.logits_divisor)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        kv_caches: Sequence[tuple[Tensor, Tensor]],
        metadata: AttentionMetadata,
        last_tokens: Tensor | None = None,
    ) -> Tensor:
        x, residual = self.embed_tokens(input_ids), None
        last = None if last_tokens is None else metadata.of_last_tokens(last_tokens)
        for layer, kv_cache in zip(self.layers, kv_caches, strict=True):
            x, residual = layer(x, residual, positions, kv_cache, metadata, last if layer is self.layers[-1] else None)
        assert residual is not None
        return self.norm.add(x, residual)[0]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        assert self.lm_head is not None, "a headless model is asked for logits"
        return self.lm_head(hidden)

    def ignores(self, tensor_name: str) -> bool:
        """Tied checkpoints may repeat the table; checkpoints of 2023 hold the rotary frequencies."""
        needs_no_head = self.config.tie_word_embeddings or self.config.headless
        return (needs_no_head and tensor_name == "lm_head.weight") or tensor_name.endswith(".rotary_emb.inv_freq")
