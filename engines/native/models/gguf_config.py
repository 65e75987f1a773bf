"""A GGUF file's metadata as a ModelConfig.

Owns the meaning of the keys that begin with the architecture's name, and which architectures of that world are the
mathematics of ours. What metadata does not say (biases, tied embeddings, QK norm) is read off the list of tensors. No
torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from engines.errors import EngineUnavailable
from engines.native.gguf_metadata import GGUFError, GGUFHeader, GGUFValue, read_gguf_float32s, read_gguf_header
from engines.native.models.model_config import CheckpointDtype, ModelConfig, refuse
from engines.native.models.rope_config import RopeConfig, longrope_attention_factor, yarn_mscale


@dataclass(frozen=True, slots=True)
class GGUFFamily:
    """One `general.architecture`. `interleaved_rope`: rows of q and k are stored for rotation in adjacent pairs."""

    architecture: str
    interleaved_rope: bool = False
    fused_checkpoint: bool = False
    no_rope_interval: int = 0
    default_theta: float = 10_000.0


GGUF_FAMILIES: Mapping[str, GGUFFamily] = {
    "llama": GGUFFamily("LlamaForCausalLM", interleaved_rope=True),
    "qwen2": GGUFFamily("Qwen2ForCausalLM"),
    "qwen3": GGUFFamily("Qwen3ForCausalLM"),
    "smollm3": GGUFFamily("SmolLM3ForCausalLM", interleaved_rope=True, no_rope_interval=4),
    "granite": GGUFFamily("GraniteForCausalLM", interleaved_rope=True),
    "phi3": GGUFFamily("Phi3ForCausalLM", fused_checkpoint=True),
    "seed_oss": GGUFFamily("SeedOssForCausalLM"),
}

_FLOAT32, _FLOAT16 = 0, 1  # ggml's numbers of storage types


def load_gguf_config(path: Path) -> ModelConfig:
    """From a .gguf file. Raises EngineUnavailable, which names the file or the metadata key."""
    try:
        header = read_gguf_header(path)
        factors = {
            name: read_gguf_float32s(path, header.tensors[name])
            for name in ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
            if name in header.tensors
        }
    except (OSError, GGUFError) as error:
        raise EngineUnavailable(f"The model's GGUF file cannot be read: {error}.", field="model") from error
    return config_from_gguf(header, factors)


def gguf_family(metadata: Mapping[str, GGUFValue]) -> GGUFFamily:
    """Raises EngineUnavailable for an architecture that is not supported."""
    name = str(metadata.get("general.architecture"))
    if name not in GGUF_FAMILIES:
        refuse("general.architecture", f"is '{name}', which is not supported; these are: {', '.join(GGUF_FAMILIES)}")
    return GGUF_FAMILIES[name]


def config_from_gguf(header: GGUFHeader, rope_factors: Mapping[str, tuple[float, ...]]) -> ModelConfig:
    """From a file's header and the content of its rope factor tensors, by tensor name, where it has any."""
    family = gguf_family(header.metadata)
    keys = _Keys(header.metadata)
    if keys.integer("expert_count", 0):
        refuse(keys.name("expert_count"), "is set: mixtures of experts are not supported")
    if int(cast(int, header.metadata.get("split.count", 0))) > 1:
        refuse("split.count", "is set: GGUF files in several parts must be merged first")
    num_layers, num_heads = keys.integer("block_count"), keys.integer("attention.head_count")
    hidden_size, context_length = keys.integer("embedding_length"), keys.integer("context_length")
    head_dim = keys.integer("attention.key_length", hidden_size // max(num_heads, 1))
    interval, window = family.no_rope_interval, keys.integer("attention.sliding_window", 0)
    tensors = header.tensors
    if "token_embd.weight" not in tensors:
        refuse("token_embd.weight", "is missing: the file holds no language model")
    return ModelConfig(
        architecture=family.architecture,
        dtype=_dtype(header),
        vocab_size=tensors["token_embd.weight"].shape[0],
        hidden_size=hidden_size,
        intermediate_size=keys.integer("feed_forward_length"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=keys.integer("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        rms_norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
        max_position_embeddings=context_length,
        rope=_rope(keys, family, head_dim, context_length, rope_factors),
        rope_layers=tuple(not interval or (layer + 1) % interval != 0 for layer in range(num_layers)),
        sliding_windows=(window,) * num_layers,
        attention_scale=keys.number("attention.scale", max(head_dim, 1) ** -0.5),
        tie_word_embeddings="output.weight" not in tensors,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        o_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_down.bias" in tensors,
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
        fused_checkpoint=family.fused_checkpoint,
        embedding_multiplier=keys.number("embedding_scale", 1.0),
        residual_multiplier=keys.number("residual_scale", 1.0),
        logits_divisor=keys.number("logit_scale", 1.0),
        eos_token_ids=gguf_eos_token_ids(header.metadata),
    )


def gguf_eos_token_ids(metadata: Mapping[str, GGUFValue]) -> tuple[int, ...]:
    """End of sequence, of turn and of message, as far as the file names them."""
    names = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
    found = [cast(int, metadata[name]) for name in names if name in metadata]
    return tuple(dict.fromkeys(found))


def _dtype(header: GGUFHeader) -> CheckpointDtype:
    """The matrices' own type; for quantized ones bfloat16, whose range never clips."""
    types = {tensor.type_id for tensor in header.tensors.values() if len(tensor.shape) > 1}
    if types == {_FLOAT32}:
        return "float32"
    return "float16" if types <= {_FLOAT32, _FLOAT16} else "bfloat16"


class _Keys:
    """The metadata below the architecture's name."""

    def __init__(self, metadata: Mapping[str, GGUFValue]) -> None:
        self._metadata = metadata
        self._prefix = str(metadata["general.architecture"])

    def name(self, key: str) -> str:
        return f"{self._prefix}.{key}"

    def text(self, key: str) -> str:
        return str(self._metadata.get(self.name(key), ""))

    def number(self, key: str, default: float | None = None) -> float:
        value = self._metadata.get(self.name(key), default)
        if isinstance(value, list) and len(set(value)) == 1:  # one value a layer, all the same
            value = value[0]
        if not isinstance(value, int | float):
            refuse(self.name(key), "is missing" if value is None else "differs by layer, which is not supported")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        return int(self.number(key, default))


def _rope(
    keys: _Keys, family: GGUFFamily, head_dim: int, longest: int, tensors: Mapping[str, tuple[float, ...]]
) -> RopeConfig:
    theta = keys.number("rope.freq_base", family.default_theta)
    rotary_dim = keys.integer("rope.dimension_count", head_dim)
    original = keys.integer("rope.scaling.original_context_length", longest)
    kind, factor = keys.text("rope.scaling.type") or "none", keys.number("rope.scaling.factor", 1.0)
    short = tensors.get("rope_factors_short.weight") or tensors.get("rope_freqs.weight")
    long = tensors.get("rope_factors_long.weight") or tensors.get("rope_freqs.weight")
    if short and long:
        # Also how the format stores llama3's scaling: as the divisors that it comes to, without an attention factor.
        scaled = "rope_factors_long.weight" in tensors
        default = longrope_attention_factor(longest / original, original) if scaled else 1.0
        return RopeConfig(
            theta=theta,
            rotary_dim=rotary_dim,
            kind="longrope",
            factor=longest / original,
            original_max_positions=original,
            attention_factor=keys.number("rope.scaling.attn_factor", default),
            short_factors=short,
            long_factors=long,
        )
    if kind == "linear":
        return RopeConfig(
            theta=theta, rotary_dim=rotary_dim, kind="linear", factor=factor, original_max_positions=longest
        )
    if kind == "yarn":
        return RopeConfig(
            theta=theta,
            rotary_dim=rotary_dim,
            kind="yarn",
            factor=factor,
            original_max_positions=original,
            attention_factor=keys.number("rope.scaling.attn_factor", 1.0) * yarn_mscale(factor),
            beta_fast=keys.number("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1.0),
        )
    if kind != "none":
        refuse(keys.name("rope.scaling.type"), f"'{kind}' is not supported; none, linear, yarn and longrope are")
    return RopeConfig(theta=theta, rotary_dim=rotary_dim)
