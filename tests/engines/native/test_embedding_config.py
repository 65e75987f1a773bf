from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from config.engines import NativeSettings
from engines.errors import EngineUnavailable
from engines.native.embedding_config import EmbeddingConfig, load_embedding_config, task_of
from engines.native.types import CLS_TOKEN, LAST_TOKEN, MAX_TOKENS, MEAN_TOKENS

STEPS = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]


def model(folder: Path, *, model_type: str = "qwen3", steps: Any = STEPS, **files: dict[str, Any]) -> Path:
    """A folder as sentence-transformers saves it; `files` by the stem of their names."""
    (folder / "1_Pooling").mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in steps]
    (folder / "modules.json").write_text(json.dumps(modules))
    pooling = files.pop("pooling", {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False})
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    for name, fields in files.items():
        (folder / f"{name}.json").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize(
    ("pooling", "mode"),
    [
        ({"pooling_mode_cls_token": True}, CLS_TOKEN),
        ({"pooling_mode_mean_tokens": True}, MEAN_TOKENS),
        ({"pooling_mode_max_tokens": True}, MAX_TOKENS),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, LAST_TOKEN),
        ({"pooling_mode": "mean", "embedding_dimension": 8}, MEAN_TOKENS),
    ],
)
def test_the_pooling_step_says_which_states_count(tmp_path: Path, pooling: dict[str, Any], mode: int):
    assert load_embedding_config(model(tmp_path, pooling=pooling)).mode == mode


def test_every_file_has_its_say(tmp_path: Path):
    folder = model(
        tmp_path,
        steps=STEPS[:2],
        sentence_bert_config={"max_seq_length": 256, "do_lower_case": True},
        config_sentence_transformers={"prompts": {"query": "Q: ", "d": "D: "}, "default_prompt_name": "query"},
    )
    assert load_embedding_config(folder) == EmbeddingConfig(
        mode=MEAN_TOKENS, normalized=False, max_length=256, lowercases=True, prompt="Q: "
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": [*STEPS[:2], ("Dense", "2_Dense")]}, "Transformer, Pooling, Dense"),
        ({"steps": [("Transformer", "0_Transformer"), STEPS[1]]}, "0_Transformer"),
        ({"pooling": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}}, "cls and mean"),
        ({"pooling": {"pooling_mode_weightedmean_tokens": True}}, "weightedmean"),
        ({"pooling": {}}, "nothing"),
        ({"pooling": {"pooling_mode_mean_tokens": True, "include_prompt": False}}, "prompt"),
    ],
)
def test_what_would_make_other_vectors_is_refused(tmp_path: Path, changes: dict[str, Any], words: str):
    with pytest.raises(EngineUnavailable, match=words):
        load_embedding_config(model(tmp_path, **changes))


def test_files_that_are_not_json_are_named(tmp_path: Path):
    (model(tmp_path) / "modules.json").write_text("{")
    with pytest.raises(EngineUnavailable, match=r"modules\.json"):
        load_embedding_config(tmp_path)


@pytest.mark.parametrize(("model_type", "mode"), [("qwen3", LAST_TOKEN), ("bert", MEAN_TOKENS)])
def test_without_the_files_the_kind_of_model_decides(tmp_path: Path, model_type: str, mode: int):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert load_embedding_config(tmp_path) == EmbeddingConfig(mode=mode, normalized=True)


@pytest.mark.parametrize(
    ("model_type", "has_files", "asked", "task"),
    [
        ("llama", False, "auto", "generate"),
        ("llama", True, "auto", "embed"),
        ("bert", False, "auto", "embed"),
        ("llama", False, "embed", "embed"),
        ("llama", True, "generate", "generate"),
    ],
)
def test_the_task_is_told_by_the_files_unless_it_is_set(
    tmp_path: Path, model_type: str, has_files: bool, asked: Any, task: str
):
    model(tmp_path, model_type=model_type)
    if not has_files:
        (tmp_path / "modules.json").unlink()
    assert task_of(NativeSettings(task=asked), tmp_path) == task


def test_an_encoder_cannot_be_told_to_generate(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(EngineUnavailable, match="encoder"):
        task_of(NativeSettings(task="generate"), tmp_path)
