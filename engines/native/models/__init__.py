"""The table of models: architecture name, as checkpoints write it, to the class that computes it.

Importing this package imports no torch: classes are loaded when asked for, so that configurations can be read anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from engines.native.models.gguf_config import load_gguf_config
from engines.native.models.hf_config import load_hf_config
from engines.native.models.model_config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    from engines.native.layers.attention_metadata import AttentionMetadata, LastTokens
    from engines.native.layers.context import LayerContext

_LLAMA = ("engines.native.models.llama", "LlamaForCausalLM")

ARCHITECTURES: Mapping[str, tuple[str, str]] = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "MinistralForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": _LLAMA,
    "Qwen3ForCausalLM": _LLAMA,
    "SmolLM3ForCausalLM": _LLAMA,
    "GraniteForCausalLM": _LLAMA,
    "Phi3ForCausalLM": _LLAMA,
    "SeedOssForCausalLM": _LLAMA,
}


class Layer(Protocol):
    """One of the equal steps between embedding and final norm."""

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        positions: Tensor,
        kv_cache: tuple[Tensor, Tensor],
        metadata: AttentionMetadata,
        last: LastTokens | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(what is to be added next, residual stream) to the same of the next layer; [num_tokens, hidden_size] all, or
        with `last` those tokens' rows."""
        ...


class CausalLM(Protocol):
    """What the model runner sees of any model, and what the loader needs to run it layer by layer."""

    config: ModelConfig
    weight_bytes: int

    @property
    def embed_tokens(self) -> Callable[[Tensor], Tensor]:
        """input_ids [num_tokens] int64 to [num_tokens, hidden_size]."""
        ...

    @property
    def layers(self) -> Sequence[Layer]:
        """Their tensors are named `model.layers.INDEX.` in checkpoints."""
        ...

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        kv_caches: Sequence[tuple[Tensor, Tensor]],
        metadata: AttentionMetadata,
        last_tokens: Tensor | None = None,
    ) -> Tensor:
        """input_ids and positions [num_tokens] int64; one (key_cache, value_cache) a layer, which is written.

        Returns hidden states after the final norm, [num_tokens, hidden_size]; with last_tokens [num_seqs] int64, the
        index of each sequence's last token, theirs alone, [num_seqs, hidden_size], for less work.
        """
        ...

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden [rows, hidden_size]: logits [rows, vocab_size] float32; of several ranks each has its own tokens'."""
        ...

    def ignores(self, tensor_name: str) -> bool:
        """Whether a checkpoint may hold this tensor without the model having a place for it."""
        ...


class ModelClass(Protocol):
    """Builds a model with unset weights and enters their places in `context.slots`."""

    def __call__(self, config: ModelConfig, context: LayerContext, max_model_len: int) -> CausalLM: ...


def model_class(architecture: str) -> ModelClass:
    """The class for one of ARCHITECTURES; imports torch."""
    module, name = ARCHITECTURES[architecture]
    return getattr(import_module(module), name)


def load_config(path: Path) -> ModelConfig:
    """From a folder with config.json or from a .gguf file. Raises EngineUnavailable naming the file or the field."""
    return load_hf_config(path / "config.json") if path.is_dir() else load_gguf_config(path)
