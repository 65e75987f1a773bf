"""Responses that are kept: what a store holds, how a chain of them becomes a conversation, and what is told of one.

The stores themselves are the gateway's. A chain is followed by `previous_id`; reading counts as use, so a store that
drops what was used longest ago keeps living conversations whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

from pydantic import Field

from adapters.openai_responses_answer import DeletedResponse, ItemList
from adapters.openai_responses_items import Item, Items, given_items
from adapters.sse import to_json
from adapters.wire import WireModel, parse_body, refuse

MAX_PAGE = 100


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """`response` is the whole answer as JSON, `input_items` a JSON array of what was sent for it."""

    id: str
    previous_id: str | None
    response: bytes
    input_items: bytes

    @property
    def num_bytes(self) -> int:
        return len(self.response) + len(self.input_items)


class ResponseStore(Protocol):
    """Holds a bounded number of bytes: what was used longest ago makes room. Must not block for long."""

    def get(self, response_id: str) -> StoredResponse | None: ...

    def put(self, stored: StoredResponse) -> None: ...

    def delete(self, response_id: str) -> bool:
        """False where there is none of that id."""
        ...


# --- conversations ----------------------------------------------------------------------------------------------------


class _Kept(WireModel):
    input: Items


def conversation(store: ResponseStore, previous_id: str | None) -> list[Item]:
    """Every item up to and including the answer of `previous_id`. Raises InvalidRequest where part of it is gone."""
    turns: list[list[Any]] = []
    response_id = previous_id
    while response_id is not None:
        stored = store.get(response_id)
        if stored is None:
            which = "" if response_id == previous_id else ", which its conversation needs"
            message = f"there is no stored response '{response_id[:256]}'{which}"
            refuse("previous_response_id", message, code="previous_response_not_found")
        turns.append(json.loads(stored.response)["output"])
        turns.append(json.loads(stored.input_items))
        response_id = stored.previous_id
    items = [item for turn in reversed(turns) for item in turn]
    return given_items(parse_body(_Kept, to_json({"input": items})).input) if items else []


def items_to_keep(items: Sequence[Item], suffix: str) -> list[dict[str, Any]]:
    """What was sent, in the full form in which it is listed: typed, with ids, content as parts."""
    return [_full_item(item, f"{suffix}_in{index}") for index, item in enumerate(items)]


_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def _full_item(item: Item, suffix: str) -> dict[str, Any]:
    full: dict[str, Any] = {name: value for name, value in item.items() if value is not None}
    kind = full.setdefault("type", "message")
    full.setdefault("id", f"{_PREFIXES[kind]}_{suffix}")
    full.setdefault("status", "completed")
    if kind == "reasoning":
        full.setdefault("summary", [])
    if kind == "message":
        is_answer = full["role"] == "assistant"
        if isinstance(full["content"], str):
            full["content"] = [{"type": "output_text" if is_answer else "input_text", "text": full["content"]}]
        if is_answer:
            full["content"] = [_answer_part(part) for part in cast(Sequence[Mapping[str, Any]], full["content"])]
    return full


def _answer_part(part: Mapping[str, Any]) -> dict[str, Any]:
    return {**part} if part["type"] == "refusal" else {"type": "output_text", "text": part["text"], "annotations": []}


# --- what is told of a stored response --------------------------------------------------------------------------------


class ItemPage(WireModel):
    """The query of GET /v1/responses/{id}/input_items."""

    after: str | None = None
    limit: int = Field(default=20, ge=1, le=MAX_PAGE)
    order: Literal["asc", "desc"] = "desc"


def item_page(query: Mapping[str, str]) -> ItemPage:
    """Raises InvalidRequest naming the parameter."""
    fields: dict[str, Any] = dict(query)
    if fields.get("limit", "").isdecimal():
        fields["limit"] = int(fields["limit"])
    return parse_body(ItemPage, to_json(fields))


def item_list_body(stored: StoredResponse, page: ItemPage) -> bytes:
    items: list[dict[str, Any]] = json.loads(stored.input_items)
    if page.order == "desc":
        items.reverse()
    if page.after is not None:
        ids = [item["id"] for item in items]
        if page.after not in ids:
            refuse("after", f"the response has no input item '{page.after[:256]}'")
        items = items[ids.index(page.after) + 1 :]
    data = items[: page.limit]
    answer: ItemList = {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(items) > len(data),
    }
    return to_json(answer)


def deleted_body(response_id: str) -> bytes:
    answer: DeletedResponse = {"id": response_id, "object": "response", "deleted": True}
    return to_json(answer)
