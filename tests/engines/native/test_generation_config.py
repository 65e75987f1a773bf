"""The sampling settings that come with a model."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest

from engines.errors import EngineUnavailable
from engines.native.generation_config import GenerationConfig, load_generation_config


def test_a_folder_without_the_file_says_nothing(tmp_path: Path) -> None:
    assert load_generation_config(tmp_path) == GenerationConfig()


def test_settings_are_read_and_others_passed_over(tmp_path: Path) -> None:
    fields = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [7, 8], "x": {}}
    (tmp_path / "generation_config.json").write_text(json.dumps(fields))
    expected = GenerationConfig(temperature=0.6, top_k=20, top_p=0.95, eos_token_ids=(7, 8))
    assert load_generation_config(tmp_path) == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [('{"top_p": "high"}', "top_p is 'high', not a number"), ("{", "cannot be read"), ("[]", "not hold an object")],
    ids=["value", "syntax", "shape"],
)
def test_a_damaged_file_is_an_error_in_words(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(EngineUnavailable, match=rf"generation_config\.json.*{words}"):
        load_generation_config(tmp_path)


def test_a_gguf_file_may_hold_them_too(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_float32("general.sampling.temp", 0.5)
    writer.add_int32("general.sampling.top_k", 40)
    writer.add_eos_token_id(3)
    writer.add_eot_token_id(9)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    expected = GenerationConfig(temperature=0.5, top_k=40, eos_token_ids=(3, 9))
    assert load_generation_config(path) == expected
