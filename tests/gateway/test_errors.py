from __future__ import annotations

from collections.abc import Iterator

import pytest

import engines.errors
import gateway.errors
from engines.errors import (
    EngineUnavailable,
    GenerationFailed,
    HeadraceError,
    InvalidRequest,
    Overloaded,
    UpstreamError,
    UpstreamTimeout,
)
from gateway.errors import STATUS, HttpRefusal, client_error, error_response, status_of

ABSTRACT = {HeadraceError, HttpRefusal}


def subclasses(root: type[HeadraceError]) -> Iterator[type[HeadraceError]]:
    for child in root.__subclasses__():
        if child.__module__ in (engines.errors.__name__, gateway.errors.__name__):
            yield child
            yield from subclasses(child)


def test_every_error_of_the_tree_has_its_own_status():
    assert set(subclasses(HeadraceError)) - ABSTRACT == set(STATUS)


def test_error_defined_elsewhere_has_the_status_of_its_base():
    class Odd(InvalidRequest):
        pass

    assert status_of(Odd("odd")) == 400


@pytest.mark.parametrize(
    ("upstream_status", "status"), [(0, 502), (200, 502), (500, 502), (503, 502), (400, 400), (404, 404), (429, 429)]
)
def test_upstream_status_is_passed_on_where_it_is_the_clients_doing(upstream_status: int, status: int):
    assert status_of(UpstreamError("refused", status=upstream_status)) == status


@pytest.mark.parametrize("upstream_status", [401, 403, 407])
def test_upstream_that_refuses_the_gateway_is_a_bad_gateway(upstream_status: int):
    assert status_of(UpstreamError("who are you?", status=upstream_status)) == 502


def test_upstream_that_does_not_answer_is_a_gateway_timeout():
    assert status_of(UpstreamTimeout("no answer")) == 504


def test_overloaded_says_when_to_come_back():
    response = error_response(Overloaded("queue full", retry_after_s=3))
    assert response.status_code == 503
    assert response.headers["retry-after"] == "3"


def test_error_of_the_tree_is_told_as_it_is():
    error = EngineUnavailable("starting")
    assert client_error(error, "r1") is error


def test_bug_is_told_by_the_request_id_alone(caplog: pytest.LogCaptureFixture):
    error = client_error(KeyError("/etc/secret"), "r1")
    assert isinstance(error, GenerationFailed)
    assert status_of(error) == 500
    assert "r1" in error.message
    assert "secret" not in error.message
    assert "/etc/secret" in caplog.text
