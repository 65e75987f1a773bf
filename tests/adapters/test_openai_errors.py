from __future__ import annotations

import json

import httpx
import pytest
from openai import APIStatusError, OpenAI

from adapters.openai_errors import MAX_ERROR_CHARS, error_body
from engines.errors import HeadraceError, ModelNotFound


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "invalid_request_error"),
        (413, "invalid_request_error"),
        (415, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (502, "server_error"),
        (503, "server_error"),
        (504, "server_error"),
    ],
)
def test_the_type_follows_the_status(status: int, kind: str) -> None:
    assert json.loads(error_body(HeadraceError("x"), status))["error"]["type"] == kind


def test_a_long_message_is_cut() -> None:
    body = json.loads(error_body(HeadraceError("x" * 100_000), 502))
    assert len(body["error"]["message"]) == MAX_ERROR_CHARS


def test_the_sdk_reads_all_members() -> None:
    def respond(_: httpx.Request) -> httpx.Response:
        return httpx.Response(404, content=error_body(ModelNotFound("x"), 404))

    with httpx.Client(transport=httpx.MockTransport(respond)) as http:
        client = OpenAI(api_key="x", base_url="http://h/v1", http_client=http, max_retries=0)
        with pytest.raises(APIStatusError) as caught:
            client.models.retrieve("x")
    error = caught.value
    assert (error.type, error.param, error.code) == ("invalid_request_error", "model", "model_not_found")
    assert "The model 'x' does not exist." in error.message
