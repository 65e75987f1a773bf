"""A model of a few thousand weights, which exist only when they are made up: a folder with a config.json."""

from __future__ import annotations

import json
from pathlib import Path

FIELDS: dict[str, object] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": True,
}


def tiny_model(folder: Path, *, tied: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(FIELDS | {"tie_word_embeddings": tied}))
    return folder
