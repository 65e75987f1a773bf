"""A tiny random model of each family: its vectors in padded batches are those of transformers, one input at a time."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from config.engines import NativeSettings
from engines.errors import EngineUnavailable
from engines.native.encoder.build import build_encoder
from engines.native.launch import CoreProcess
from engines.native.models.encoders import FAMILIES, is_encoder
from engines.native.types import CLS_TOKEN, MEAN_TOKENS, AddSequence, Pooling, TokenParams
from engines.native.weights.resolve import ModelFiles

VOCAB = 100
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
}
OWN: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 8},
}


def save(family: str, folder: Path) -> Any:
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(4)
    known = AutoConfig.for_model(family).to_dict()
    sizes = {name: value for name, value in {**SIZES, **OWN.get(family, {})}.items() if name in known}
    model = AutoModel.from_config(AutoConfig.for_model(family, **sizes)).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_in_a_batch_equal_transformers_one_by_one(family: str, tmp_path: Path):
    model = save(family, tmp_path)
    assert is_encoder(tmp_path)
    files = ModelFiles(tmp_path, "folder", "m")
    section = NativeSettings(device="cpu", cpu_threads=1, max_num_batched_tokens=80)
    core, ready = build_encoder(section, files, lambda *_: None)
    longest = 38 if family in ("camembert", "mpnet", "roberta", "xlm-roberta") else 40
    assert (ready.max_model_len, ready.embedding_size, ready.vocab_size) == (longest, 32, VOCAB)
    assert not ready.generates
    rng = random.Random(1)
    inputs = [[rng.randrange(4, VOCAB) for _ in range(length)] for length in (1, 5, longest, 7, 20)]
    poolings = [Pooling(MEAN_TOKENS), Pooling(CLS_TOKEN), Pooling(MEAN_TOKENS), Pooling(CLS_TOKEN, False), Pooling()]
    for i, (one, pooling) in enumerate(zip(inputs, poolings, strict=True)):
        core.add(b"c", AddSequence(i, tuple(one), TokenParams(max_tokens=0, pooling=pooling)))
    vectors: dict[int, tuple[float, ...]] = {}
    num_steps = 0
    while core.has_work:
        num_steps += 1
        vectors |= {output.seq_id: struct.unpack("<32f", output.embedding) for _, output in core.step()}
    assert num_steps < len(inputs), "some were computed side by side"
    for i, (one, pooling) in enumerate(zip(inputs, poolings, strict=True)):
        with torch.no_grad():
            states = model(input_ids=torch.tensor([one])).last_hidden_state[0]
        truth = {MEAN_TOKENS: states.mean(0), CLS_TOKEN: states[0]}.get(pooling.mode, states[-1])
        if pooling.normalized:
            truth = truth / truth.norm()
        torch.testing.assert_close(torch.tensor(vectors[i]), truth, atol=2e-5, rtol=1e-4)


def bert(folder: Path, **changes: Any) -> Path:
    save("bert", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def build(folder: Path, **settings: Any) -> Any:
    section = NativeSettings(device="cpu", cpu_threads=1, **settings)
    return build_encoder(section, ModelFiles(folder, "folder", "m"), lambda *_: None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quantize": "int8"}, "quantize is int8"),
        ({"batch_invariant": True}, "batch_invariant"),
        ({"task": "generate"}, "can only embed"),
        ({"max_model_len": 41}, "40 positions"),
    ],
)
def test_settings_of_decoders_are_refused(tmp_path: Path, settings: dict[str, Any], words: str):
    with pytest.raises(EngineUnavailable, match=words):
        build(bert(tmp_path), **settings)


def test_an_encoder_is_not_split_over_ranks(tmp_path: Path):
    core = CoreProcess(NativeSettings(model=str(bert(tmp_path)), device="cpu", tensor_parallel_size=2))
    try:
        with pytest.raises(EngineUnavailable, match="tensor_parallel_size is 2, but the model is an encoder"):
            core.start()
    finally:
        core.stop()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["BertForSequenceClassification"]}, "BertForSequenceClassification"),
        ({"is_decoder": True}, "not for embeddings"),
        ({"hidden_size": 64}, "another shape"),
        ({"num_hidden_layers": 3}, "missing"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], words: str):
    with pytest.raises(EngineUnavailable, match=words):
        build(bert(tmp_path, **changes))


def test_pickled_weights_are_refused(tmp_path: Path):
    (bert(tmp_path) / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(EngineUnavailable, match="cannot be loaded"):
        build(tmp_path)
