"""The page is what the tables say, and the table of routes is what the application has."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.routing import Route

from tests.gateway.asgi import Call, app_of
from tests.gateway.compatibility.page import page
from tests.gateway.compatibility.routes import NOT_THERE, THERE

PAGE = Path(__file__).parents[3] / "docs" / "compatibility.md"


def test_the_page_is_current():
    assert PAGE.read_text() == page(), "run scripts/list_compatibility"


def test_every_route_of_the_application_has_a_row():
    routes = [route for route in app_of().routes if isinstance(route, Route)]
    served = {(method, route.path) for route in routes for method in (route.methods or {"GET"}) - {"HEAD"}}
    assert served == {route for row in THERE for route in row.each}


@pytest.mark.parametrize(("method", "path"), [route for row in NOT_THERE for route in row.each])
async def test_what_is_not_here_is_not_found(method: str, path: str):
    call = await Call(app_of(), method, path, b"{}", {"content-type": "application/json"}).run()
    assert call.status == 404
    assert call.json()["error"]["message"]
