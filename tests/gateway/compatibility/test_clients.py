"""No field that a published client can send lacks a row.

The lists come from the clients as they are installed: a release that brings a new field fails here until it is decided
what becomes of it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from anthropic.types import OutputConfigParam
from anthropic.types import message_create_params as message
from anthropic.types.beta import message_create_params as beta_message
from huggingface_hub import ChatCompletionInput, TextGenerationInput, TextGenerationInputGenerateParameters
from openai.types import EmbeddingCreateParams
from openai.types import completion_create_params as completion
from openai.types.chat import ChatCompletionStreamOptionsParam
from openai.types.chat import completion_create_params as chat
from openai.types.responses import ResponseTextConfigParam
from openai.types.responses import response_create_params as response
from openai.types.shared_params import Reasoning

from tests.gateway.compatibility.chat import CHAT
from tests.gateway.compatibility.completions import COMPLETIONS
from tests.gateway.compatibility.embeddings import EMBEDDINGS
from tests.gateway.compatibility.messages import MESSAGES
from tests.gateway.compatibility.native import GENERATE, ROOT
from tests.gateway.compatibility.responses import RESPONSES
from tests.gateway.compatibility.rows import OTHERWISE, Table
from tests.gateway.compatibility.tables import TABLES


def fields(kind: Any) -> set[str]:
    """Of a typed dict or a dataclass."""
    if dataclasses.is_dataclass(kind):
        return {field.name for field in dataclasses.fields(kind)}
    return set(kind.__required_keys__ | kind.__optional_keys__)


@pytest.mark.parametrize(
    ("kinds", "table"),
    [
        ([chat.CompletionCreateParamsStreaming, chat.CompletionCreateParamsNonStreaming, ChatCompletionInput], CHAT),
        ([completion.CompletionCreateParamsStreaming, completion.CompletionCreateParamsNonStreaming], COMPLETIONS),
        ([response.ResponseCreateParamsStreaming, response.ResponseCreateParamsNonStreaming], RESPONSES),
        ([message.MessageCreateParamsStreaming, message.MessageCreateParamsNonStreaming], MESSAGES),
        ([EmbeddingCreateParams], EMBEDDINGS),
        ([TextGenerationInput], ROOT),
        ([TextGenerationInputGenerateParameters], GENERATE),
    ],
    ids=lambda value: value.path if isinstance(value, Table) else "",
)
def test_every_field_of_a_clients_request_has_a_row(kinds: list[Any], table: Table) -> None:
    assert set().union(*map(fields, kinds)) <= {row.name for row in table.rows}


def test_what_is_in_beta_with_anthropic_has_rows_too() -> None:
    sent_as_header = {"betas"}
    beta = fields(beta_message.MessageCreateParamsStreaming)
    assert beta - sent_as_header <= {row.name for row in MESSAGES.rows}


@pytest.mark.parametrize(
    ("kind", "table", "field"),
    [
        (ChatCompletionStreamOptionsParam, CHAT, "stream_options"),
        (Reasoning, RESPONSES, "reasoning"),
        (ResponseTextConfigParam, RESPONSES, "text"),
        (response.StreamOptions, RESPONSES, "stream_options"),
        (OutputConfigParam, MESSAGES, "output_config"),
    ],
)
def test_every_part_of_a_field_has_a_row(kind: Any, table: Table, field: str) -> None:
    assert {f"{field}.{part}" for part in fields(kind)} <= {row.field for row in table.rows}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.path)
def test_every_field_that_a_peer_knows_has_a_row(table: Table) -> None:
    known = {name for row in table.rows for name in (row.name, row.field)}
    for told in table.peers.values():
        named = {name for status, names in told.items() if status != OTHERWISE for name in names.split()}
        assert named <= known
