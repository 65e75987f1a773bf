"""GGUF files of each architecture, written by the gguf package from transformers' models, against those models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SeedOssConfig,
    SmolLM3Config,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from engines.errors import EngineUnavailable
from engines.native.gguf_metadata import read_gguf_header
from engines.native.kernels import reference
from engines.native.models import CausalLM, load_config
from engines.native.models.gguf_config import GGUF_FAMILIES
from engines.native.weights.loader import load_model
from tests.engines.native.models.paged_harness import PagedRunner

VOCAB = 70
PROMPT = [int(token) for token in torch.randint(0, VOCAB, (19,), generator=torch.Generator().manual_seed(3))]
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "short_factor": [1.0 + i / 9 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
}
MODELS: dict[str, tuple[str, PreTrainedConfig]] = {
    "llama": ("llama", LlamaConfig(**SIZES)),
    "llama-tied": ("llama", LlamaConfig(**{**SIZES, "tie_word_embeddings": True})),
    "llama-biases": ("llama", LlamaConfig(**SIZES, attention_bias=True)),
    "llama-head-dim": ("llama", LlamaConfig(**SIZES, head_dim=24)),
    "llama-llama3-rope": ("llama", LlamaConfig(**SIZES, rope_parameters=LLAMA3)),
    "llama-linear-rope": ("llama", LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "factor": 2.0})),
    "qwen2": ("qwen2", Qwen2Config(**SIZES)),
    "qwen2-yarn-rope": ("qwen2", Qwen2Config(**SIZES, rope_parameters=YARN)),
    "qwen3": ("qwen3", Qwen3Config(**SIZES, head_dim=24)),
    "smollm3": ("smollm3", SmolLM3Config(**{**SIZES, "num_hidden_layers": 5})),
    "granite": (
        "granite",
        GraniteConfig(
            **SIZES, attention_multiplier=0.4, embedding_multiplier=3.0, residual_multiplier=0.3, logits_scaling=2.5
        ),
    ),
    "phi3": ("phi3", Phi3Config(**SIZES, sliding_window=7)),
    "phi3-longrope": (
        "phi3",
        Phi3Config(**SIZES, original_max_position_embeddings=8, rope_parameters=LONGROPE),
    ),
    "seed-oss": ("seed_oss", SeedOssConfig(**SIZES, head_dim=16)),
}
ARCHITECTURE_IDS = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "norm.weight")):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def write_gguf(
    path: Path,
    arch: str,
    model: PreTrainedModel,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    **extra: int,
) -> Path:
    """What the format's own converter would write; matrices in `kind`."""
    config: Any = model.config
    writer = gguf.GGUFWriter(path, arch)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_eos_token_id(2)
    if arch == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if arch == "phi3" and config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    write_rope(writer, config)
    for key, value in extra.items():
        writer.add_uint32(f"{arch}.{key}", value)
    names = gguf.get_tensor_name_map(ARCHITECTURE_IDS[arch], config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored = str(names.get_name(name, try_suffixes=(".weight", ".bias")))
        values = tensor.numpy()
        for projection, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if projection in name and arch in ("llama", "smollm3", "granite"):
                halves = values.reshape(heads, 2, head_dim // 2, *values.shape[1:])
                values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
        matrix_kind = kind if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(stored, gguf.quantize(values, matrix_kind), raw_dtype=matrix_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_rope(writer: gguf.GGUFWriter, config: Any) -> None:
    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    elif kind == "llama3":
        frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, None)
        plain = 1 / rope["rope_theta"] ** (torch.arange(0, 16, 2) / 16)
        writer.add_tensor("rope_freqs.weight", (plain / frequencies).float().numpy())
    elif kind == "longrope":
        _, attention_factor = ROPE_INIT_FUNCTIONS["longrope"](config, None)
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        writer.add_rope_scaling_attn_factors(attention_factor)
        writer.add_tensor("rope_factors_short.weight", np.array(rope["short_factor"], dtype=np.float32))
        writer.add_tensor("rope_factors_long.weight", np.array(rope["long_factor"], dtype=np.float32))


def load_ours(path: Path) -> CausalLM:
    config = load_config(path)
    return load_model(config, path, device=torch.device("cpu"), dtype=torch.float32, ops=reference, max_model_len=64)


@pytest.mark.parametrize(("arch", "config"), MODELS.values(), ids=list(MODELS))
def test_logits_equal_transformers(arch: str, config: PreTrainedConfig, tmp_path: Path) -> None:
    oracle = random_model(config)
    with torch.no_grad():
        expected = oracle(torch.tensor([PROMPT])).logits[0]
    model = load_ours(write_gguf(tmp_path / "model.gguf", arch, oracle))
    logits = PagedRunner(model).step({"a": PROMPT})["a"]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert model.config.eos_token_ids == (2,)


def test_every_gguf_architecture_is_tried_here() -> None:
    assert {arch for arch, _ in MODELS.values()} == set(GGUF_FAMILIES)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q5_1", "Q8_0"])
def test_stored_types_are_read_as_the_gguf_package_reads_them(kind: str, tmp_path: Path) -> None:
    storage = gguf.GGMLQuantizationType[kind]
    oracle = random_model(LlamaConfig(**SIZES))
    path = write_gguf(tmp_path / "model.gguf", "llama", oracle, storage)
    with torch.no_grad():
        for parameter in oracle.parameters():
            if parameter.dim() == 2:
                rounded = gguf.dequantize(gguf.quantize(parameter.numpy(), storage), storage)
                parameter.copy_(torch.from_numpy(rounded))
        expected = oracle(torch.tensor([PROMPT])).logits[0]
    logits = PagedRunner(load_ours(path)).step({"a": PROMPT})["a"]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_tensors_lie_where_the_gguf_package_finds_them(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", "llama", random_model(LlamaConfig(**SIZES)))
    found = read_gguf_header(path).tensors
    expected = {
        tensor.name: (tuple(tensor.shape[::-1].tolist()), int(tensor.tensor_type), int(tensor.data_offset))
        for tensor in gguf.GGUFReader(path).tensors
    }
    assert found == expected


@pytest.mark.parametrize(
    ("kind", "dtype"), [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16"), ("Q8_0", "bfloat16")]
)
def test_the_checkpoints_dtype_is_read_off_its_matrices(kind: str, dtype: str, tmp_path: Path) -> None:
    oracle = random_model(LlamaConfig(**SIZES))
    path = write_gguf(tmp_path / "model.gguf", "llama", oracle, gguf.GGMLQuantizationType[kind])
    assert load_config(path).dtype == dtype


def test_a_mixture_of_experts_is_refused_by_key(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", "llama", random_model(LlamaConfig(**SIZES)), expert_count=8)
    with pytest.raises(EngineUnavailable, match=r"llama\.expert_count") as caught:
        load_config(path)
    assert caught.value.field == "llama.expert_count"


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(EngineUnavailable, match="'mamba', which is not supported; these are: llama, qwen2"):
        load_config(tmp_path / "model.gguf")


def test_a_file_cut_inside_a_tensor_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", "llama", random_model(LlamaConfig(**SIZES)))
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(EngineUnavailable, match=r"ends inside .*cut short or damaged"):
        load_ours(path)


def test_smollm2_from_gguf_continues_prompts_as_transformers_does(smollm2_gguf: Path) -> None:
    prompts = {
        "The capital of France is": [504, 3575, 282, 4649, 314],
        "def fibonacci(n):\n": [1604, 3987, 46477, 24, 94, 727, 198],
        "Once upon a time, in a small village": [6403, 1980, 253, 655, 28, 281, 253, 1165, 6560],
    }
    model = load_model(
        load_config(smollm2_gguf),
        smollm2_gguf,
        device=torch.device("cpu"),
        dtype=torch.float32,
        ops=reference,
        max_model_len=128,
    )
    runner = PagedRunner(model, block_size=16)
    texts, chunks = dict(prompts), prompts
    for _ in range(16):
        logits = runner.step(chunks)
        chunks = {text: [int(logits[text][-1].argmax())] for text in prompts}
        texts = {text: ids + chunks[text] for text, ids in texts.items()}
    oracle = smollm2_in_transformers(smollm2_gguf)
    for text, ids in texts.items():
        with torch.no_grad():
            choices = oracle(torch.tensor([ids])).logits[0].argmax(dim=-1).tolist()
        start = len(prompts[text])
        assert ids[start:] == choices[start - 1 : -1], text


def smollm2_in_transformers(path: Path) -> Any:
    """Transformers' model with the weights as the gguf package dequantizes them."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    stored, data = read_gguf_header(path).tensors, np.memmap(path, mode="r")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = stored[str(names.get_name(name, try_suffixes=(".weight",)))]
            kind = gguf.GGMLQuantizationType(tensor.type_id)
            block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            num_bytes = parameter.numel() // block_size * block_bytes
            blocks = np.array(data[tensor.offset : tensor.offset + num_bytes]).reshape(parameter.shape[0], -1)
            values = torch.from_numpy(gguf.dequantize(blocks, kind)).view(parameter.shape)
            if "q_proj" in name or "k_proj" in name:
                values = values.view(-1, 32, 2, 576).transpose(1, 2).reshape(-1, 576)
            parameter.copy_(values)
    return model
