"""config.json to ModelConfig: what is refused, by the name of its field, and what each family leaves unsaid."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engines.errors import EngineUnavailable
from engines.native.models import load_config
from engines.native.models.hf_config import config_from_hf

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("architectures", ["MambaForCausalLM"], "names MambaForCausalLM, which is not supported; these are: LlamaFor"),
        ("architectures", None, r"names \(none given\)"),
        ("num_local_experts", 8, "mixtures of experts"),
        ("hidden_act", "gelu", "'gelu' is not supported"),
        ("vision_config", {"depth": 2}, "only text models"),
        ("attn_logit_softcapping", 50.0, "capped attention"),
        ("hidden_size", None, "is missing"),
        ("num_hidden_layers", "two", "is 'two', not a whole number"),
        ("num_kv_heads", 3, "does not divide the 4 query heads"),
        ("head_dim", 0, "must be at least 1"),
        ("rotary_dim", 7, "not an even number"),
        ("dtype", "float8_e4m3fn", "'float8_e4m3fn' is not supported"),
        ("rope_scaling", {"rope_type": "proportional"}, "type 'proportional' is not supported; these are: default"),
        ("rope_scaling", {"rope_type": "linear"}, r"rope_scaling\.factor is None; a number is needed"),
        ("rope_scaling", {"type": "default", "mrope_section": [1, 2]}, "multimodal positions"),
        ("rope_parameters", {"full_attention": {"rope_theta": 1.0}}, "differs by layer type"),
    ],
)
def test_what_would_change_the_mathematics_is_refused_by_field(field: str, value: Any, words: str) -> None:
    spelled = {"num_kv_heads": "num_key_value_heads", "rotary_dim": "head_dim"}.get(field, field)
    with pytest.raises(EngineUnavailable, match=words) as caught:
        config_from_hf({**LLAMA, spelled: value})
    assert caught.value.field == field
    assert field in caught.value.message


@pytest.mark.parametrize(
    ("architecture", "fields", "expected"),
    [
        ("LlamaForCausalLM", {}, {"rms_norm_eps": 1e-6, "num_kv_heads": 4, "tie_word_embeddings": False}),
        ("LlamaForCausalLM", {"attention_bias": True}, {"qkv_bias": True, "o_bias": True, "mlp_bias": False}),
        ("LlamaForCausalLM", {"sliding_window": 8}, {"sliding_windows": (0, 0)}),
        ("MistralForCausalLM", {"num_attention_heads": 8}, {"sliding_windows": (4096, 4096), "num_kv_heads": 8}),
        ("MistralForCausalLM", {"sliding_window": None, "num_attention_heads": 8}, {"sliding_windows": (0, 0)}),
        ("Qwen2ForCausalLM", {"sliding_window": 8}, {"sliding_windows": (0, 0), "qkv_bias": True, "o_bias": False}),
        (
            "Qwen2ForCausalLM",
            {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1},
            {"sliding_windows": (0, 8)},
        ),
        ("Qwen3ForCausalLM", {}, {"head_dim": 128, "qk_norm": True, "qkv_bias": False}),
        (
            "SmolLM3ForCausalLM",
            {"num_hidden_layers": 4},
            {"rope_layers": (True, True, True, False), "tie_word_embeddings": True},
        ),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [0, 1, 1]}, {"rope_layers": (False, True)}),
        ("GraniteForCausalLM", {}, {"attention_scale": 1.0}),
        ("Phi3ForCausalLM", {}, {"fused_checkpoint": True, "rms_norm_eps": 1e-5, "sliding_windows": (0, 0)}),
        ("SeedOssForCausalLM", {"num_attention_heads": 8}, {"qkv_bias": True, "o_bias": False, "head_dim": 128}),
        ("LlamaForCausalLM", {"eos_token_id": 5}, {"eos_token_ids": (5,)}),
        ("LlamaForCausalLM", {"eos_token_id": [5, 6]}, {"eos_token_ids": (5, 6)}),
        ("LlamaForCausalLM", {"torch_dtype": "bfloat16"}, {"dtype": "bfloat16"}),
        ("LlamaForCausalLM", {"dtype": "torch.float16"}, {"dtype": "float16"}),
    ],
)
def test_a_familys_own_defaults_fill_what_its_file_leaves_out(
    architecture: str, fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    config = config_from_hf({**LLAMA, **fields, "architectures": [architecture]})
    assert {name: getattr(config, name) for name in expected} == expected


def test_phi3s_first_name_of_longrope_is_understood() -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    fields = {**LLAMA, "architectures": ["Phi3ForCausalLM"], "original_max_position_embeddings": 64}
    kinds = {
        config_from_hf({**fields, "rope_scaling": {"type": kind, **factors}}).rope
        for kind in ("su", "yarn", "longrope")
    }
    assert [rope.kind for rope in kinds] == ["longrope"]


@pytest.mark.parametrize("content", ["{", "[]", None], ids=["broken", "list", "missing"])
def test_a_config_file_that_cannot_be_read_is_an_error_in_words(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(EngineUnavailable, match=r"config\.json"):
        load_config(tmp_path)


def test_reading_a_configuration_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    script = (
        "import sys; from pathlib import Path; from engines.native.models import load_config;"
        "import engines.native.generation_config, engines.native.weights.resolve;"
        "load_config(Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
