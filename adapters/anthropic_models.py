"""GET /v1/models and /v1/models/{id} in Anthropic's shape, for clients that say `anthropic-version`.

Both APIs have these routes, and only that header tells them apart. Pages are cut as Anthropic cuts them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Literal

from typing_extensions import TypedDict

from adapters.sse import to_json
from adapters.wire import refuse
from engines.api import ModelCard

VERSION_HEADER = "anthropic-version"
DEFAULT_LIMIT, MAX_LIMIT = 20, 1000


class ModelInfo(TypedDict):
    id: str
    type: Literal["model"]
    display_name: str
    created_at: str  # RFC 3339
    lifecycle: Literal["active"]
    max_input_tokens: int | None
    max_tokens: int | None


class ModelPage(TypedDict):
    data: list[ModelInfo]
    has_more: bool
    first_id: str | None
    last_id: str | None


def model_info_body(card: ModelCard, name: str) -> bytes:
    """One model under the name that the client asked for."""
    return to_json(_model_info(card, name))


def model_page_body(cards: Iterable[ModelCard], query: Sequence[tuple[str, str]]) -> bytes:
    """The page that the query asks for, of every name and alias. Raises InvalidRequest naming the parameter."""
    asked = dict(query)
    stages = [value for key, value in query if key.removesuffix("[]") == "lifecycle"]
    models = [_model_info(card, name) for card in cards for name in (card.name, *card.aliases)]
    if stages and "active" not in stages:
        models = []  # nothing here is deprecated or retired
    names = [model["id"] for model in models]
    limit = _limit(asked.get("limit"))
    start, end = 0, len(models)
    if "after_id" in asked and "before_id" in asked:
        refuse("before_id", "cannot be sent together with after_id")
    if "before_id" in asked:
        end = _position("before_id", asked["before_id"], names)
        start = max(0, end - limit)
        has_more = start > 0
    else:
        if "after_id" in asked:
            start = _position("after_id", asked["after_id"], names) + 1
        end = min(end, start + limit)
        has_more = end < len(models)
    data = models[start:end]
    page: ModelPage = {
        "data": data,
        "has_more": has_more,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }
    return to_json(page)


def _model_info(card: ModelCard, name: str) -> ModelInfo:
    return {
        "id": name,
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(card.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": card.max_prompt_tokens or card.max_model_len,
        "max_tokens": card.max_model_len,
    }


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_LIMIT
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= MAX_LIMIT:
        refuse("limit", f"must be a number from 1 to {MAX_LIMIT}")
    return int(text)


def _position(field: str, name: str, names: Sequence[str]) -> int:
    if name not in names:
        refuse(field, "no model has this id")
    return names.index(name)
