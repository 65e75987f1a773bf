"""docs/compatibility.md, written from the tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from adapters.wire import NoEffect, Refused, reasons
from tests.gateway.compatibility.routes import NOT_THERE, PEERS, THERE, RouteRow
from tests.gateway.compatibility.rows import Row, Table
from tests.gateway.compatibility.tables import TABLES

INTRODUCTION = """\
# Compatibility

What becomes of every route and every field, here and with others. This page is written by
`scripts/list_compatibility` from the tables in `tests/gateway/compatibility/`, and each line about Headrace has been
tried: a test sends the field to a real model over HTTP, and looks at what is asked of the engine where no answer of
that model could show it.

- **honoured**: the answer shows it; a test fails if the field is ignored.
- **no effect**: it is accepted and checked, and the answer is the one without it. The reason stands beside it.
- **refused**: a 400 (422 on TGI's routes) that names the field, unless it says nothing that would change anything,
  such as null.

A field that stands nowhere here is refused by name as well, except on TGI's native routes, which take unknown fields as
TGI does and name them in the header `x-ignored-fields`; with `--tgi-dialect`, which `headrace launch` sets, those of
`/v1/chat/completions` and `/v1/completions` do so too. Null always means absent.

The peers are vLLM 0.33, SGLang 0.5.23 and Text Generation Inference 3.3.7, by their source and with the OpenAI protocol
as each has it. **if enabled**: by a setting, or with some models alone. **ignored**: accepted in silence. **another
meaning**: read as something else than OpenAI's. An empty place means that nobody looked; a column that is missing, that
the peer has no such route. What they do was read, not tried.
"""


def page() -> str:
    lines = [INTRODUCTION, "## Routes\n", *_routes(THERE), "", "Not here:\n", *_routes(NOT_THERE)]
    for table in TABLES:
        lines += ["", f"## POST {table.path}{' parameters' if table.prefix else ''}\n", *_fields(table)]
    return "\n".join(lines) + "\n"


def _routes(rows: Sequence[RouteRow]) -> Iterable[str]:
    yield _line("route", *PEERS, "")
    yield _line(*["---"] * (len(PEERS) + 2))
    for row in rows:
        routes = ", ".join(f"`{method} {path}`" for method, path in row.each)
        yield _line(routes.replace("{model:path}", "{model}"), *row.peers, row.note)


def _fields(table: Table) -> Iterable[str]:
    yield _line("field", "Headrace", *table.peers, "")
    yield _line(*["---"] * (len(table.peers) + 3))
    for status in ("honoured", "no effect", "refused"):
        for row in table.rows:
            if row.status == status:
                peers = [table.peer_status(peer, row) for peer in table.peers]
                here = "if enabled" if row.setting else row.status
                yield _line(f"`{row.field}`", here, *peers, row.note or _reason(table, row))


def _reason(table: Table, row: Row) -> str:
    """The setting that a field needs, or the reason that the wire model gives."""
    if row.setting:
        return f"With `{row.setting}`, else refused."
    model = table.model
    *outer, name = row.field.split(".")
    for step in outer:
        model = _model_in(model.model_fields[step].annotation)
    for mark in (NoEffect, Refused):
        if reason := reasons(model, mark).get(name):
            return reason[0].upper() + reason[1:].rstrip(".") + "."
    return ""


def _model_in(annotation: Any) -> type[BaseModel]:
    """The one model that an optional field holds."""
    (model,) = [arm for arm in get_args(annotation) if isinstance(arm, type) and issubclass(arm, BaseModel)]
    return model


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
