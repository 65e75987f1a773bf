"""Rotary tables against the functions that transformers computes them with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Phi3Config, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from engines.native.layers.rotary import cos_sin_table, identity_table
from engines.native.models.rope_config import RopeConfig, parse_rope

HEAD_DIM, MAX_POSITIONS = 64, 4096
BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1024}
FACTORS = {"short_factor": [1 + i / 50 for i in range(32)], "long_factor": [1.5 + i for i in range(32)]}
SETTINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, **BANDS},
    "llama3-other-bands": {"rope_type": "llama3", "factor": 32.0, **BANDS, "high_freq_factor": 9.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 40.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
        "original_max_position_embeddings": 128,
        "beta_fast": 20,
        "beta_slow": 2,
    },
    "yarn-given-attention-factor": {
        "rope_type": "yarn",
        "factor": 2.0,
        "attention_factor": 1.25,
        "original_max_position_embeddings": 2048,
        "truncate": False,
    },
    "longrope": {"rope_type": "longrope", "original_max_position_embeddings": 1024, **FACTORS},
    "longrope-given-factor": {
        "rope_type": "longrope",
        "factor": 16.0,
        "original_max_position_embeddings": 1024,
        **FACTORS,
    },
}


def table_of(config: PreTrainedConfig, settings: dict[str, Any], length: int) -> torch.Tensor:
    inverse_frequencies, attention_factor = ROPE_INIT_FUNCTIONS[settings["rope_type"]](config, None, seq_len=length)
    angles = torch.arange(length).float().unsqueeze(1) * inverse_frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1) * attention_factor


def parse(settings: dict[str, Any], **fields: Any) -> RopeConfig:
    return parse_rope({"rope_parameters": settings, **fields}, HEAD_DIM, MAX_POSITIONS, 10_000.0)


@pytest.mark.parametrize("length", [512, 5000], ids=["short", "long"])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=list(SETTINGS))
def test_tables_equal_transformers(settings: dict[str, Any], theta: float, length: int) -> None:
    sizes = {"hidden_size": 2 * HEAD_DIM, "num_attention_heads": 2, "max_position_embeddings": MAX_POSITIONS}
    config = LlamaConfig(**sizes, rope_parameters={**settings, "rope_theta": theta})
    ours = cos_sin_table(parse({**settings, "rope_theta": theta}), length, torch.device("cpu"))
    assert ours.dtype == torch.float32
    assert ours.is_contiguous()
    torch.testing.assert_close(ours, table_of(config, settings, length), atol=4e-8 * length + 2e-6, rtol=0)


def test_partial_rotation_turns_only_the_first_dimensions() -> None:
    settings = {"rope_type": "longrope", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    settings |= {name: factors[:16] for name, factors in FACTORS.items()}
    config = Phi3Config(
        hidden_size=2 * HEAD_DIM,
        num_attention_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        original_max_position_embeddings=512,
        rope_parameters=dict(settings),
        pad_token_id=None,
    )
    rope = parse(settings, original_max_position_embeddings=512)
    assert rope.rotary_dim == HEAD_DIM // 2
    ours = cos_sin_table(rope, 1000, torch.device("cpu"))
    torch.testing.assert_close(ours, table_of(config, settings, 1000), atol=5e-5, rtol=0)


def test_old_and_new_spelling_mean_the_same() -> None:
    new = parse({"rope_type": "linear", "factor": 2.0, "rope_theta": 5.0})
    old = parse_rope({"rope_theta": 5.0, "rope_scaling": {"type": "linear", "factor": 2.0}}, HEAD_DIM, MAX_POSITIONS, 1)
    assert new == old


def test_the_identity_table_rotates_nothing() -> None:
    table = identity_table(RopeConfig(theta=1e4, rotary_dim=8), 5, torch.device("cpu"))
    assert torch.equal(table, torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0]).expand(5, 8))


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({"rope_type": "default"}, 4096),
        ({"rope_type": "linear", "factor": 4.0}, 16384),
        ({"rope_type": "dynamic", "factor": 4.0}, 4096),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}, 8192),
        ({"rope_type": "llama3", "factor": 8.0, **BANDS}, 4096),
    ],
    ids=lambda value: value["rope_type"] if isinstance(value, dict) else None,
)
def test_context_length_counts_the_scaling_once(settings: dict[str, Any], tokens: int) -> None:
    assert parse(settings).context_length(MAX_POSITIONS) == tokens
