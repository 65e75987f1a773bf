"""Whether a model is for embeddings, and how its vectors are made, as its files say: those of sentence-transformers.

    modules.json                       the steps: transformer, pooling, normalizing
    1_Pooling/config.json              which hidden states become the vector
    sentence_bert_config.json          the longest input, and whether text is lowercased
    config_sentence_transformers.json  a prompt that stands before every text, if there is one

A step that is not known is refused, for without it the vectors would be others. No torch here: the gateway's process
reads this to prepare texts, the core's to know what it builds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

from config.engines import NativeSettings
from engines.errors import EngineUnavailable
from engines.native.models.encoders import is_encoder
from engines.native.types import CLS_TOKEN, LAST_TOKEN, MAX_TOKENS, MEAN_TOKENS

Task = Literal["generate", "embed"]

_MODES: Mapping[str, int] = {
    "cls": CLS_TOKEN,
    "max": MAX_TOKENS,
    "mean": MEAN_TOKENS,
    "lasttoken": LAST_TOKEN,
}
_FLAGS: Mapping[str, str] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingConfig:
    """`max_length`: tokens of an input, None where the files leave it to the model. `prompt` goes before every text."""

    mode: int = LAST_TOKEN  # of types.Pooling
    normalized: bool = True
    max_length: int | None = None
    lowercases: bool = False
    prompt: str = ""


def task_of(section: NativeSettings, path: Path) -> Task:
    """What the model at `path` serves: what the settings say, else what its files look like.

    Raises EngineUnavailable where an encoder is told to generate.
    """
    encoder = is_encoder(path)
    if encoder and section.task == "generate":
        raise EngineUnavailable("task is 'generate', but the model is an encoder, which can only embed.", field="task")
    if section.task != "auto":
        return section.task
    return "embed" if encoder or (path / "modules.json").is_file() else "generate"


def load_embedding_config(path: Path) -> EmbeddingConfig:
    """Raises EngineUnavailable naming the file and what it asks for that is not supported.

    Without the files a decoder's vector is its last token's hidden state, an encoder's the mean; both of length 1.
    """
    if not (path / "modules.json").is_file():
        return EmbeddingConfig(mode=MEAN_TOKENS if is_encoder(path) else LAST_TOKEN)
    steps = [(str(step["type"]).rpartition(".")[2], str(step.get("path", ""))) for step in _steps(path)]
    kinds = [kind for kind, _ in steps]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        _refuse("modules.json", f"has the steps {', '.join(kinds)}; Transformer, Pooling and Normalize are supported")
    if steps[0][1]:
        _refuse("modules.json", f"keeps the transformer in the folder {steps[0][1]}, not beside itself")
    transformer = _read(path / "sentence_bert_config.json")
    max_length = transformer.get("max_seq_length")
    return EmbeddingConfig(
        mode=_mode(_read(path / steps[1][1] / "config.json")),
        normalized="Normalize" in kinds,
        max_length=max_length if isinstance(max_length, int) else None,
        lowercases=bool(transformer.get("do_lower_case")),
        prompt=_default_prompt(_read(path / "config_sentence_transformers.json")),
    )


def _mode(config: Mapping[str, Any]) -> int:
    named = config.get("pooling_mode")
    asked = {str(named)} if isinstance(named, str) else {word for flag, word in _FLAGS.items() if config.get(flag)}
    if len(asked) != 1 or not asked <= _MODES.keys():
        what = " and ".join(sorted(asked)) or "nothing"
        _refuse("the pooling step's config.json", f"pools by {what}; one of {', '.join(_MODES)} is supported")
    if config.get("include_prompt") is False:
        _refuse("the pooling step's config.json", "leaves the prompt out of the vector, which is not supported")
    return _MODES[asked.pop()]


def _default_prompt(config: Mapping[str, Any]) -> str:
    name = config.get("default_prompt_name")
    prompts: Mapping[str, str] = config.get("prompts") or {}
    return prompts.get(name, "") if isinstance(name, str) else ""


def _steps(path: Path) -> list[dict[str, Any]]:
    steps = _json(path / "modules.json")
    if not isinstance(steps, list) or not all(isinstance(step, dict) and "type" in step for step in cast(Any, steps)):
        _refuse("modules.json", "is not a list of steps with their types")
    return cast("list[dict[str, Any]]", steps)


def _read(file: Path) -> Mapping[str, Any]:
    """The file's object; none where there is no file."""
    if not file.is_file():
        return {}
    fields = _json(file)
    if not isinstance(fields, dict):
        _refuse(file.name, "does not hold an object")
    return cast(Mapping[str, Any], fields)


def _json(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineUnavailable(f"{file.name} cannot be read: {error}.", field="model") from error


def _refuse(file: str, problem: str) -> NoReturn:
    raise EngineUnavailable(f"The model's embeddings cannot be made: {file} {problem}.", field="model")
