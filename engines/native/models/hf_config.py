"""A Hugging Face config.json as a ModelConfig.

Owns what each family's file leaves unsaid (its defaults are in the family's own configuration class, not in the file)
and what must be refused because it would change the mathematics. No torch, no network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from engines.errors import EngineUnavailable
from engines.native.models.encoders import FAMILIES as ENCODERS
from engines.native.models.model_config import CheckpointDtype, ModelConfig, refuse
from engines.native.models.rope_config import parse_rope


@dataclass(frozen=True, slots=True)
class _Family:
    """How one architecture reads its configuration. A bias is a constant, or the name of the field that tells."""

    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    fused_checkpoint: bool = False
    windows: Literal["none", "all", "upper", "typed"] = "none"  # which layers `sliding_window` is for


_COMMON_DEFAULTS: Mapping[str, Any] = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
_LLAMA_BIAS: dict[str, Any] = {"qkv_bias": "attention_bias", "o_bias": "attention_bias", "mlp_bias": "mlp_bias"}
_QWEN_WINDOW = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}

FAMILIES: Mapping[str, _Family] = {
    "LlamaForCausalLM": _Family({"max_position_embeddings": 2048}, **_LLAMA_BIAS),
    "MistralForCausalLM": _Family(
        {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096}, windows="all"
    ),
    "MinistralForCausalLM": _Family(
        {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096}, windows="typed"
    ),
    "Qwen2ForCausalLM": _Family({"max_position_embeddings": 32768, **_QWEN_WINDOW}, qkv_bias=True, windows="upper"),
    "Qwen3ForCausalLM": _Family(
        {"max_position_embeddings": 32768, "head_dim": 128, **_QWEN_WINDOW},
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        qk_norm=True,
        windows="upper",
    ),
    "SmolLM3ForCausalLM": _Family(
        {
            "max_position_embeddings": 32768,
            "rope_theta": 2_000_000.0,
            "tie_word_embeddings": True,
            "no_rope_layer_interval": 4,
            "use_sliding_window": False,
        },
        **_LLAMA_BIAS,
        windows="typed",
    ),
    "GraniteForCausalLM": _Family(
        {
            "max_position_embeddings": 2048,
            "attention_multiplier": 1.0,
            "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "logits_scaling": 1.0,
        },
        **_LLAMA_BIAS,
    ),
    "Phi3ForCausalLM": _Family(
        {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
        fused_checkpoint=True,
        windows="all",
    ),
    "SeedOssForCausalLM": _Family(
        {
            "max_position_embeddings": 524288,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "attention_bias": True,
            "attention_out_bias": False,
        },
        qkv_bias="attention_bias",
        o_bias="attention_out_bias",
        mlp_bias="mlp_bias",
    ),
}

_REFUSED: Mapping[str, str] = {  # fields that, set to anything true, mean other mathematics
    "num_experts": "is set: mixtures of experts are not supported",
    "num_local_experts": "is set: mixtures of experts are not supported",
    "n_routed_experts": "is set: mixtures of experts are not supported",
    "is_encoder_decoder": "is set: only decoders are supported",
    "use_bidirectional_attention": "is set: attention to later tokens is not supported",
    "add_cross_attention": "is set: only decoders are supported",
    "vision_config": "is set: only text models are supported",
    "clip_qkv": "is set: clipped attention is not supported",
    "attn_logit_softcapping": "is set: capped attention is not supported",
    "final_logit_softcapping": "is set: capped logits are not supported",
    "attention_chunk_size": "is set: chunked attention is not supported",
}


def load_hf_config(path: Path) -> ModelConfig:
    """From a config.json. Raises EngineUnavailable, which names the file or the field."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineUnavailable(f"The model's config.json cannot be read: {error}.", field="model") from error
    if not isinstance(fields, dict):
        raise EngineUnavailable("The model's config.json does not hold an object.", field="model")
    return config_from_hf(cast(dict[str, Any], fields))


def config_from_hf(fields: Mapping[str, Any]) -> ModelConfig:
    """From the content of a config.json. Raises EngineUnavailable naming the field that is missing or unsupported."""
    architecture, family, headless = _family(fields)
    fields = {**_COMMON_DEFAULTS, **family.defaults, **fields}
    for name, problem in _REFUSED.items():
        if fields.get(name):
            refuse(name, problem)
    if fields["hidden_act"] not in ("silu", "swish"):
        refuse("hidden_act", f"'{fields['hidden_act']}' is not supported; silu is")
    num_layers, num_heads = _integer(fields, "num_hidden_layers"), _integer(fields, "num_attention_heads")
    hidden_size = _integer(fields, "hidden_size")
    head_dim = _integer(fields, "head_dim", hidden_size // max(num_heads, 1))
    max_positions = _integer(fields, "max_position_embeddings")
    rope_layers = _rope_layers(fields, num_layers)
    return ModelConfig(
        architecture=architecture,
        dtype=_dtype(fields),
        vocab_size=_integer(fields, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_integer(fields, "intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=_integer(fields, "num_key_value_heads", num_heads),
        head_dim=head_dim,
        quantization=fields.get("quantization_config") or None,
        rms_norm_eps=float(fields["rms_norm_eps"]),
        max_position_embeddings=max_positions,
        rope=parse_rope(fields, head_dim, max_positions, fields["rope_theta"]),
        rope_layers=rope_layers,
        sliding_windows=_sliding_windows(fields, family, rope_layers),
        attention_scale=float(fields.get("attention_multiplier", max(head_dim, 1) ** -0.5)),
        tie_word_embeddings=bool(fields["tie_word_embeddings"]),
        qkv_bias=_flag(fields, family.qkv_bias),
        o_bias=_flag(fields, family.o_bias),
        mlp_bias=_flag(fields, family.mlp_bias),
        qk_norm=family.qk_norm,
        headless=headless,
        fused_checkpoint=family.fused_checkpoint,
        embedding_multiplier=float(fields.get("embedding_multiplier", 1.0)),
        residual_multiplier=float(fields.get("residual_multiplier", 1.0)),
        logits_divisor=float(fields.get("logits_scaling", 1.0)),
        eos_token_ids=token_ids(fields.get("eos_token_id")),
    )


def token_ids(value: Any) -> tuple[int, ...]:
    """Token ids as configurations write them: nothing, one, or a list."""
    if value is None:
        return ()
    return tuple(cast(list[int], value)) if isinstance(value, list) else (int(value),)


def _family(fields: Mapping[str, Any]) -> tuple[str, _Family, bool]:
    """The architecture's name and reading, and whether the checkpoint has no LM head, as `Qwen3Model` says."""
    name: str = (fields.get("architectures") or ["(none given)"])[0]
    whole = name.removesuffix("Model") + "ForCausalLM" if name.endswith("Model") else name
    if whole not in FAMILIES:
        known = f"{', '.join(FAMILIES)}, and encoders of the types {', '.join(ENCODERS)}"
        refuse("architectures", f"names {name}, which is not supported; these are: {known}")
    return whole, FAMILIES[whole], whole != name


def _integer(fields: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = fields.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool):
        refuse(name, "is missing" if value is None else f"is {value!r}, not a whole number")
    return value


def _flag(fields: Mapping[str, Any], setting: bool | str) -> bool:
    return bool(fields.get(setting)) if isinstance(setting, str) else setting


def _dtype(fields: Mapping[str, Any]) -> CheckpointDtype:
    name = str(fields.get("dtype") or fields.get("torch_dtype") or "float32").removeprefix("torch.")
    if name not in get_args(CheckpointDtype):
        refuse("dtype", f"'{name}' is not supported; these are: {', '.join(get_args(CheckpointDtype))}")
    return cast(CheckpointDtype, name)


def _rope_layers(fields: Mapping[str, Any], num_layers: int) -> tuple[bool, ...]:
    """`no_rope_layers` says 1 where a layer does rotate, despite its name; the interval is its default."""
    listed: Sequence[int] | None = fields.get("no_rope_layers")
    if listed is not None:
        return tuple(bool(rotates) for rotates in listed[:num_layers])
    interval: int | None = fields.get("no_rope_layer_interval")
    return tuple(not interval or (layer + 1) % interval != 0 for layer in range(num_layers))


def _sliding_windows(fields: Mapping[str, Any], family: _Family, rope_layers: Sequence[bool]) -> tuple[int, ...]:
    num_layers = len(rope_layers)
    window = fields.get("sliding_window")
    if family.windows == "none" or not window or not fields.get("use_sliding_window", True):
        return (0,) * num_layers
    types: Sequence[str] | None = fields.get("layer_types")
    if family.windows == "all":
        return (int(window),) * num_layers
    if types is not None:
        unknown = set(types) - {"full_attention", "sliding_attention"}
        if unknown:
            refuse("layer_types", f"holds {', '.join(sorted(unknown))}, which is not supported")
        slides = [kind == "sliding_attention" for kind in types]
    elif family.windows == "upper":
        slides = [layer >= fields["max_window_layers"] for layer in range(num_layers)]
    elif "no_rope_layer_interval" in fields:  # SmolLM3: the layers without rotation
        slides = [not rotates for rotates in rope_layers]
    else:
        slides = [True] * num_layers
    return tuple(int(window) if slide else 0 for slide in slides)
