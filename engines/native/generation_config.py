"""The sampling settings that a model's authors ship with it: generation_config.json, or the same within a GGUF file.

Owns reading them; who uses them, and when, is the engine's business. No torch, no tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from engines.errors import EngineUnavailable
from engines.native.gguf_metadata import GGUFError, read_gguf_metadata
from engines.native.models.gguf_config import gguf_eos_token_ids
from engines.native.models.hf_config import token_ids

_FILE = "generation_config.json"
_GGUF_KEYS: Mapping[str, str] = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """None: the authors say nothing. `do_sample` is not looked at: requests say themselves when they want greedy."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    eos_token_ids: tuple[int, ...] = ()


def load_generation_config(path: Path) -> GenerationConfig:
    """From a model's folder, where the file may be missing, or from a .gguf file.

    Raises EngineUnavailable for a file that cannot be read or a value that is no number, which it names.
    """
    if path.is_dir():
        file = path / _FILE
        return _from_fields(_read_object(file)) if file.is_file() else GenerationConfig()
    try:
        metadata = read_gguf_metadata(path)
    except (OSError, GGUFError) as error:
        raise EngineUnavailable(f"The model's GGUF file cannot be read: {error}.", field="model") from error
    fields: dict[str, Any] = {name: metadata.get(key) for name, key in _GGUF_KEYS.items()}
    return _from_fields({**fields, "eos_token_id": list(gguf_eos_token_ids(metadata))})


def _from_fields(fields: Mapping[str, Any]) -> GenerationConfig:
    top_k = _number(fields, "top_k")
    return GenerationConfig(
        temperature=_number(fields, "temperature"),
        top_k=None if top_k is None else int(top_k),
        top_p=_number(fields, "top_p"),
        min_p=_number(fields, "min_p"),
        typical_p=_number(fields, "typical_p"),
        repetition_penalty=_number(fields, "repetition_penalty"),
        eos_token_ids=token_ids(fields.get("eos_token_id")),
    )


def _number(fields: Mapping[str, Any], name: str) -> float | None:
    value = fields.get(name)
    if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
        raise EngineUnavailable(f"{_FILE}: {name} is {value!r}, not a number.", field=name)
    return value


def _read_object(file: Path) -> Mapping[str, Any]:
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineUnavailable(f"{_FILE} cannot be read: {error}.", field="model") from error
    if not isinstance(fields, dict):
        raise EngineUnavailable(f"{_FILE} does not hold an object.", field="model")
    return cast(Mapping[str, Any], fields)
