"""Which models are encoders, told from their config.json, and how long their inputs may be. No torch here.

Their mathematics is transformers' own, see encoder/model.py; the families named here are those that tests hold to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from engines.native.models.model_config import refuse

_OFFSET = ("camembert", "mpnet", "roberta", "xlm-roberta")  # positions begin after the padding's
FAMILIES = ("bert", "distilbert", "modernbert", *_OFFSET)
_BODIES = ("Model", "ForMaskedLM", "ForPreTraining")  # heads of other kinds were trained to say something else


def is_encoder(path: Path) -> bool:
    """Whether a folder holds a model of one of FAMILIES."""
    try:
        fields: object = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # a .gguf file, or something that whoever loads it will complain about
    return isinstance(fields, dict) and cast("dict[str, Any]", fields).get("model_type") in FAMILIES


def longest_input(fields: Mapping[str, Any]) -> int:
    """Tokens, special ones included, of the longest input that a config.json allows.

    Raises EngineUnavailable for models of these families that are not there to embed.
    """
    names: list[str] = fields.get("architectures") or ["Model"]
    if not names[0].endswith(_BODIES) or fields.get("is_decoder"):
        refuse("architectures", f"names {names[0]}, which is not for embeddings")
    length = fields.get("max_position_embeddings")
    if not isinstance(length, int):
        refuse("max_position_embeddings", "is missing")
    if fields.get("model_type") not in _OFFSET:
        return length
    padding = fields.get("pad_token_id")
    return length - (1 if padding is None else padding) - 1
