"""Every family member against Hugging Face transformers: tiny random models, float32, through the paged cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    GraniteConfig,
    LlamaConfig,
    MinistralConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SeedOssConfig,
    SmolLM3Config,
)

from engines.native.kernels import reference
from engines.native.models import ARCHITECTURES, CausalLM, load_config
from engines.native.models.gguf_config import GGUF_FAMILIES
from engines.native.models.hf_config import FAMILIES
from engines.native.weights.loader import load_model
from tests.engines.native.models.paged_harness import PagedRunner

VOCAB = 97
PROMPT = [int(token) for token in torch.randint(0, VOCAB, (23,), generator=torch.Generator().manual_seed(1))]
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
}
LONG_FACTORS = {"short_factor": [1.0 + i / 9 for i in range(6)], "long_factor": [2.0 + i for i in range(6)]}
MODELS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "llama-tied": LlamaConfig(**{**SIZES, "tie_word_embeddings": True}),
    "llama-biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama-multi-head": LlamaConfig(**{**SIZES, "num_key_value_heads": 4}),
    "llama-head-dim": LlamaConfig(**SIZES, head_dim=20),
    "llama-linear-rope": LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "factor": 2.0}),
    "llama-dynamic-rope": LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "factor": 2.0}),
    "llama-llama3-rope": LlamaConfig(
        **SIZES,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "llama-yarn-rope": LlamaConfig(
        **SIZES, rope_parameters={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    ),
    "mistral-full": MistralConfig(**SIZES, sliding_window=None),
    "mistral-window-shorter-than-prompt": MistralConfig(**SIZES, sliding_window=5),
    "mistral-window-longer-than-prompt": MistralConfig(**SIZES, sliding_window=40),
    "mistral-nemo-head-dim": MistralConfig(**SIZES, sliding_window=None, head_dim=16),
    "ministral-layer-types": MinistralConfig(
        **SIZES, head_dim=12, sliding_window=6, layer_types=["full_attention", "sliding_attention", "full_attention"]
    ),
    "qwen2": Qwen2Config(**SIZES),
    "qwen2-upper-windows": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "qwen3": Qwen3Config(**SIZES, head_dim=24),
    "qwen3-attention-bias": Qwen3Config(**SIZES, head_dim=24, attention_bias=True),
    "smollm3": SmolLM3Config(**{**SIZES, "num_hidden_layers": 5}),
    "smollm3-windows": SmolLM3Config(
        **SIZES, no_rope_layer_interval=2, use_sliding_window=True, sliding_window=5, attention_bias=True
    ),
    "granite": GraniteConfig(
        **SIZES,
        attention_multiplier=0.4,
        embedding_multiplier=3.0,
        residual_multiplier=0.3,
        logits_scaling=2.5,
        mlp_bias=True,
    ),
    "phi3": Phi3Config(**SIZES, sliding_window=7),
    "phi3-longrope-partial": Phi3Config(
        **{**SIZES, "num_attention_heads": 3, "num_key_value_heads": 1},
        original_max_position_embeddings=8,
        rope_parameters={"rope_type": "longrope", "rope_theta": 100.0, "partial_rotary_factor": 0.75, **LONG_FACTORS},
    ),
    "seed-oss": SeedOssConfig(**SIZES, head_dim=16, attention_out_bias=True),
}


@pytest.fixture(scope="module", params=MODELS, ids=list(MODELS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[CausalLM, torch.Tensor]:
    """(our model, transformers' logits for PROMPT [len(PROMPT), VOCAB])."""
    folder = tmp_path_factory.mktemp(request.param)
    return load_both(MODELS[request.param], folder)


def load_both(hf_config: PreTrainedConfig, folder: Path) -> tuple[CausalLM, torch.Tensor]:
    torch.manual_seed(7)
    oracle = AutoModelForCausalLM.from_config(hf_config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            if name.endswith(("bias", "norm.weight")):  # initialized to constants that would hide a mistake
                parameter.add_(torch.randn_like(parameter) * 0.3)
        expected = oracle(torch.tensor([PROMPT])).logits[0]
    oracle.save_pretrained(folder)
    return load_ours(folder), expected


def load_ours(folder: Path) -> CausalLM:
    return load_model(
        load_config(folder), folder, device=torch.device("cpu"), dtype=torch.float32, ops=reference, max_model_len=64
    )


def assert_close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_prefill_in_one_go_equals_transformers(pair: tuple[CausalLM, torch.Tensor]) -> None:
    model, expected = pair
    assert expected.std() > 0.1, "logits too flat to tell models apart"
    assert_close(PagedRunner(model).step({"a": PROMPT})["a"], expected)


def test_prefill_in_chunks_equals_transformers(pair: tuple[CausalLM, torch.Tensor]) -> None:
    model, expected = pair
    runner = PagedRunner(model)
    pieces = [runner.step({"a": PROMPT[start : start + 5]})["a"] for start in range(0, len(PROMPT), 5)]
    assert_close(torch.cat(pieces), expected)


def test_decoding_token_by_token_equals_transformers(pair: tuple[CausalLM, torch.Tensor]) -> None:
    model, expected = pair
    runner = PagedRunner(model, block_size=1)
    assert_close(torch.cat([runner.step({"a": [token]})["a"] for token in PROMPT]), expected)


def test_a_mixed_batch_gives_each_sequence_what_it_gets_alone(pair: tuple[CausalLM, torch.Tensor]) -> None:
    model, expected = pair
    runner = PagedRunner(model, block_size=4)
    first = runner.step({"a": PROMPT[:9], "b": PROMPT[:1], "c": PROMPT[:4]})
    second = runner.step({"a": PROMPT[9:], "b": PROMPT[1:7], "c": PROMPT[4:5]})
    for name, end in (("a", 23), ("b", 7), ("c", 5)):
        assert_close(torch.cat([first[name], second[name]]), expected[:end])


def test_last_tokens_alone_get_what_they_get_among_all_and_leave_the_same_cache(
    pair: tuple[CausalLM, torch.Tensor],
) -> None:
    model, expected = pair
    runner = PagedRunner(model, block_size=4)
    first = runner.step({"a": PROMPT[:9], "b": PROMPT[:1], "c": PROMPT[:4]}, last_only=True)
    second = runner.step({"a": PROMPT[9:20], "b": PROMPT[1:7], "c": PROMPT[4:5]}, last_only=True)
    for name, ends in (("a", (8, 19)), ("b", (0, 6)), ("c", (3, 4))):
        assert_close(torch.cat([first[name], second[name]]), expected[list(ends)])
    whole = runner.step({"a": PROMPT[20:], "b": PROMPT[7:8]})  # sees the last layer's keys and values of all before
    assert_close(whole["a"], expected[20:23])
    assert_close(whole["b"], expected[7:8])


def test_dynamic_rope_beyond_the_trained_context_equals_transformers_at_that_length(tmp_path: Path) -> None:
    sizes = {**SIZES, "max_position_embeddings": 10}
    hf_config = LlamaConfig(**sizes, rope_parameters={"rope_type": "dynamic", "factor": 2.0})
    _, expected = load_both(hf_config, tmp_path)
    config = load_config(tmp_path)
    model = load_model(
        config,
        tmp_path,
        device=torch.device("cpu"),
        dtype=torch.float32,
        ops=reference,
        max_model_len=len(PROMPT),
    )
    assert_close(PagedRunner(model).step({"a": PROMPT})["a"], expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)], ids=str)
def test_matrices_may_be_kept_in_16_bits_under_float32_arithmetic(
    tmp_path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    _, expected = load_both(Qwen2Config(**SIZES), tmp_path)
    model = load_model(
        load_config(tmp_path),
        tmp_path,
        device=torch.device("cpu"),
        dtype=torch.float32,
        weight_dtype=dtype,
        ops=reference,
    )
    logits = PagedRunner(model).step({"a": PROMPT})["a"]
    error = (logits - expected).norm() / expected.norm()
    assert 0 < error < tolerance


def test_every_architecture_of_the_table_is_tried_here() -> None:
    tried = {MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__ for config in MODELS.values()}
    assert tried == set(ARCHITECTURES) == set(FAMILIES)
    assert {family.architecture for family in GGUF_FAMILIES.values()} <= tried
