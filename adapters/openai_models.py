"""GET /v1/models and /v1/models/{id}: every name that an engine answers to, in OpenAI's shape.

`root` is the canonical name behind an alias and `max_model_len` the context in tokens, as vLLM tells them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from typing_extensions import TypedDict

from adapters.sse import to_json
from engines.api import ModelCard


class ModelObject(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int | None


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ModelObject]


def _model_object(card: ModelCard, name: str) -> ModelObject:
    return {
        "id": name,
        "object": "model",
        "created": card.created,
        "owned_by": card.owned_by,
        "root": card.name,
        "parent": None,
        "max_model_len": card.max_model_len,
    }


def model_list_body(cards: Iterable[ModelCard]) -> bytes:
    """Aliases are listed after the name that they stand for."""
    data = [_model_object(card, name) for card in cards for name in (card.name, *card.aliases)]
    answer: ModelList = {"object": "list", "data": data}
    return to_json(answer)


def model_body(card: ModelCard, name: str) -> bytes:
    """One model under the name that the client asked for."""
    return to_json(_model_object(card, name))
