"""The server that real clients are tested against. An engine kind is added by one function in LIVE."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from config.engines import EchoSettings
from engines.echo import EchoEngine
from gateway.app import create_app
from tests.gateway.live import Live, serving


def echo() -> AbstractContextManager[Live]:
    return serving(create_app([EchoEngine(EchoSettings())]), "echo")


LIVE = [pytest.param(echo, id="echo")]


@pytest.fixture(scope="module", params=LIVE)
def live(request: pytest.FixtureRequest) -> Iterator[Live]:
    with request.param() as server:
        yield server
