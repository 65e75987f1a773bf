"""A decoder's shape and settings, whatever file they came from.

Owns the numbers that the mathematics needs and the checks that they fit together. `hf_config.py` and `gguf_config.py`
fill it; layers read it. Knows no file format and no tensors: no torch here, so any process may import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from engines.errors import EngineUnavailable
from engines.native.models.rope_config import RopeConfig

CheckpointDtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One decoder-only model of the Llama family. Per-layer tuples have `num_layers` elements."""

    architecture: str  # a key of models.ARCHITECTURES
    dtype: CheckpointDtype  # of the checkpoint; for quantized files the 16-bit type that loses least
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig
    rope_layers: tuple[bool, ...]  # False: the layer has no positional encoding (arXiv 2501.18795)
    sliding_windows: tuple[int, ...]  # positions that a query sees, its own included; 0 = all
    attention_scale: float  # factor of q.k before the softmax
    tie_word_embeddings: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm over each head of q and k before the rotation
    headless: bool = False  # the model ends with its hidden states; it has no LM head, and nobody asks for logits
    fused_checkpoint: bool = False  # q, k, v and gate, up are each one tensor in the checkpoint
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0  # of each block's output before it joins the residual stream
    logits_divisor: float = 1.0
    eos_token_ids: tuple[int, ...] = ()
    quantization: Mapping[str, Any] | None = None  # the checkpoint's own quantization_config, as it stands

    def __post_init__(self) -> None:
        positive = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads")
        for name in (*positive, "head_dim", "max_position_embeddings"):
            if getattr(self, name) < 1:
                refuse(name, f"is {getattr(self, name)}; it must be at least 1")
        if self.num_heads % self.num_kv_heads:
            refuse("num_kv_heads", f"{self.num_kv_heads} does not divide the {self.num_heads} query heads")
        if not 0 < self.rope.rotary_dim <= self.head_dim or self.rope.rotary_dim % 2:
            refuse("rotary_dim", f"{self.rope.rotary_dim} is not an even number up to head_dim, {self.head_dim}")
        for name in ("rope_layers", "sliding_windows"):
            if len(getattr(self, name)) != self.num_layers:
                refuse(name, f"has {len(getattr(self, name))} entries for {self.num_layers} layers")

    @property
    def context_length(self) -> int:
        """Tokens (prompt and output) that the model was made for, RoPE scaling included."""
        return self.rope.context_length(self.max_position_embeddings)


def refuse(field: str, problem: str) -> NoReturn:
    """The model's own description asks for something that this engine cannot do."""
    raise EngineUnavailable(f"The model's configuration cannot be used: {field} {problem}.", field=field)
