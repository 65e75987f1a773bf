"""Every row of the tables is true, and no field that a client may send lacks one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from adapters.wire import NoEffect, Refused, reasons
from tests.gateway.asgi import app_of, post
from tests.gateway.compatibility.conftest import Ask
from tests.gateway.compatibility.rows import Row, Table, same
from tests.gateway.compatibility.sampling import MODEL
from tests.gateway.compatibility.tables import TABLES
from tests.gateway.scripted import ScriptedEngine


def cases(chosen: Callable[[Row], bool]) -> list[Any]:
    return [
        pytest.param(table, row, id=f"{table.path}-{row.field}")
        for table in TABLES
        for row in table.rows
        if chosen(row)
    ]


@pytest.mark.parametrize(("table", "row"), cases(lambda row: row.check is not None))
def test_a_field_is_what_its_row_says(ask: Ask, table: Table, row: Row) -> None:
    with_field, without = table.request(row)
    told = ask(table.path, with_field)
    if row.status == "refused":
        assert told.status in (400, 422), told.body
        message, field = told.complaint
        assert row.field.split(".")[-1] in message
        assert field in (None, row.field)
        return
    plain = ask(table.path, without)
    assert (told.status, plain.status) == (200, 200), (told.body, plain.body)
    if row.status == "no effect":
        assert same(told, plain, row.field)
    else:
        assert row.check is not None
        assert row.check(told, plain), (told.body, plain.body)


@pytest.mark.parametrize(("_", "probed"), cases(lambda row: row.probe is not None))
def test_what_one_answer_cannot_show_several_do(client: httpx.Client, _: Table, probed: Row) -> None:
    assert probed.probe is not None
    assert probed.probe(client)


@pytest.mark.parametrize(("table", "asked"), cases(lambda row: row.check is None and row.probe is None))
async def test_what_no_answer_of_this_model_shows_is_asked_of_the_engine(table: Table, asked: Row) -> None:
    engine = ScriptedEngine(name=MODEL)
    for body in table.request(asked):
        await post(app_of(engine), table.path, body).run()
    told, plain = (replace(request, request_id="") for request in engine.requests or engine.embedding_requests)
    assert told != plain


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.path)
def test_every_field_has_a_row_and_the_wire_model_agrees_with_it(table: Table) -> None:
    rows = [row for row in table.rows if not row.unknown]
    assert {row.name for row in rows} == set(table.model.model_fields)
    whole = [row for row in rows if "." not in row.field]
    assert {row.field for row in whole if row.status == "no effect"} == set(reasons(table.model, NoEffect))
    assert {row.field for row in whole if row.status == "refused"} >= set(reasons(table.model, Refused))
    for row in table.rows:
        if row.unknown:
            assert row.name not in table.model.model_fields
