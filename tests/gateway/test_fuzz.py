"""Every route of our own /openapi.json under schemathesis: requests made from the schemas, and ones that break them.

Never a 5xx, every answer as its schema says (status, content type, body, each event of a stream), and what breaks a
schema is refused. The same few examples in every run; FUZZ_EXAMPLES=300 asks for more of them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS

from gateway.openapi import openapi_document
from tests.gateway.live import Live

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "6"))
SCHEMA = schemathesis.openapi.from_dict(openapi_document("1"))
OPERATIONS = {operation.label: operation for operation in (result.ok() for result in SCHEMA.get_all_operations())}
WITH_BODY = [label for label, operation in OPERATIONS.items() if operation.body]
MAX_TOKENS = {  # what bounds an answer of a real model
    "POST /v1/chat/completions": "max_completion_tokens",
    "POST /v1/completions": "max_tokens",
    "POST /v1/responses": "max_output_tokens",
    "POST /v1/messages": "max_tokens",
}

# A schema cannot say all: which fields go together, which engine can do what, that 3.0 is not taken for 3.
_not_all = CHECKS.get_by_names(["positive_data_acceptance"])
# What is wrong with a stream of TGI's is an event, after a 200; looked at below.
_refusals = CHECKS.get_by_names(["negative_data_rejection"])


def try_out(label: str, mode: GenerationMode, url: str, edit: Callable[[dict[str, Any]], None]) -> Counter[int]:
    """How many answers had which status."""
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=OPERATIONS[label].as_strategy(generation_mode=mode))
    def every(case: Case) -> None:
        if isinstance(case.body, dict):
            case.body = {**case.body}
            edit(case.body)
        answer = case.call(base_url=url, timeout=120)
        statuses[answer.status_code] += 1
        told_inside = '"error"' in answer.text and answer.headers["content-type"][0].startswith("text/event-stream")
        case.validate_response(answer, excluded_checks=[*_not_all, *(_refusals if told_inside else ())])
        assert answer.status_code < 500

    every()
    return statuses


def named(model: str) -> Callable[[dict[str, Any]], None]:
    """Only a model that exists is asked anything."""

    def edit(body: dict[str, Any]) -> None:
        if isinstance(body.get("model"), str) and 0 < len(body["model"]) <= 1024:
            body["model"] = model

    return edit


@pytest.mark.parametrize("label", OPERATIONS)
def test_what_the_schema_allows_is_answered_as_it_says(echo_live: Live, label: str):
    statuses = try_out(label, GenerationMode.POSITIVE, echo_live.url, named(echo_live.model))
    assert sum(statuses.values()) >= 1


@pytest.mark.parametrize("label", WITH_BODY)
def test_what_the_schema_forbids_is_refused(echo_live: Live, label: str):
    try_out(label, GenerationMode.NEGATIVE, echo_live.url, named(echo_live.model))


@pytest.mark.parametrize("label", MAX_TOKENS)
def test_a_real_model_answers_as_the_schema_says(native_live: Live, label: str):
    name = named(native_live.model)

    def short(body: dict[str, Any]) -> None:
        name(body)
        body[MAX_TOKENS[label]] = 4
        body.pop("min_tokens", None)

    try_out(label, GenerationMode.POSITIVE, native_live.url, short)
