"""Fields of chat completions and completions: null is absent, and all that the SDK's messages hold is known.

What becomes of each field is tried in tests/gateway/compatibility/.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Literal, NotRequired, Required, get_args, get_origin, get_type_hints

import pytest
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionContentPartTextParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionFunctionMessageParam,
    ChatCompletionMessage,
    ChatCompletionMessageFunctionToolCallParam,
    ChatCompletionMessageParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionToolMessageParam,
    ChatCompletionUserMessageParam,
)
from openai.types.shared_params import ReasoningEffort

from adapters import openai_messages
from adapters.adapter import Adapter
from adapters.openai_chat import ChatAdapter
from adapters.openai_chat_types import ChatCompletionRequest
from adapters.openai_completions import CompletionsAdapter
from adapters.wire import Refused
from engines.api import Finish, TextDelta
from tests.gateway.compatibility.chat import CHAT, USER
from tests.gateway.compatibility.completions import COMPLETIONS
from tests.gateway.compatibility.rows import Table

ADAPTERS: dict[str, Adapter] = {CHAT.path: ChatAdapter(), COMPLETIONS.path: CompletionsAdapter()}
ROUTES = [pytest.param(table, id=table.path) for table in (CHAT, COMPLETIONS)]


def asked(table: Table, body: dict[str, Any], *, forwarded: bool = True) -> tuple[object, ...]:
    """All that a request body changes: what is asked of the engine, how reasoning is told, how a stream ends."""
    exchange = ADAPTERS[table.path].parse(json.dumps(body).encode(), {}, "r")
    requests = exchange.requests if forwarded else [replace(request, forwarded={}) for request in exchange.requests]
    thought = exchange.frame(0, TextDelta(0, "", reasoning="why", finish=Finish("stop")))
    return list(requests), exchange.stream, b"why" in thought, b"usage" in exchange.end()


@pytest.mark.parametrize("table", ROUTES)
def test_null_is_absent(table: Table) -> None:
    plain = {name: value for name, value in table.body.items() if name in ("model", "messages", "prompt")}
    for row in table.rows:
        if row.name not in plain and not row.unknown:
            assert asked(table, plain | {row.name: None}) == asked(table, plain), row.field


@pytest.mark.parametrize("table", ROUTES)
def test_a_field_without_effect_is_forwarded_and_changes_nothing_else(table: Table) -> None:
    for row in (row for row in table.rows if row.status == "no effect"):
        sent, plain = table.request(row)
        assert asked(table, sent, forwarded=False) == asked(table, plain, forwarded=False)
        (request,) = ADAPTERS[table.path].parse(json.dumps(sent).encode(), {}, "r").requests
        assert request.forwarded == ({} if "." in row.field else {row.field: row.value})


@pytest.mark.parametrize("table", ROUTES)
def test_a_refused_field_may_ask_for_nothing(table: Table) -> None:
    for name, field in table.model.model_fields.items():
        for mark in field.metadata:
            for harmless in mark.harmless if isinstance(mark, Refused) else ():
                assert asked(table, dict(table.body) | {name: harmless}) == asked(table, dict(table.body)), name


# --- the SDK's types --------------------------------------------------------------------------------------------------


def keys(typed_dict: Any) -> set[str]:
    return set(typed_dict.__required_keys__ | typed_dict.__optional_keys__)


@pytest.mark.parametrize(
    ("sdk_type", "ours"),
    [
        (ChatCompletionSystemMessageParam, openai_messages.SystemMessage),
        (ChatCompletionDeveloperMessageParam, openai_messages.DeveloperMessage),
        (ChatCompletionUserMessageParam, openai_messages.UserMessage),
        (ChatCompletionAssistantMessageParam, openai_messages.AssistantMessage),
        (ChatCompletionToolMessageParam, openai_messages.ToolMessage),
        (ChatCompletionFunctionMessageParam, openai_messages.FunctionMessage),
        (ChatCompletionContentPartTextParam, openai_messages.TextPart),
        (ChatCompletionMessageFunctionToolCallParam, openai_messages.ToolCall),
    ],
)
def test_every_field_of_the_sdks_messages_is_known(sdk_type: Any, ours: Any) -> None:
    assert keys(sdk_type) - keys(ours) == set()
    assert required(ours, total=True) == required(sdk_type, total=False)


def required(typed_dict: Any, *, total: bool) -> set[str]:
    """`__required_keys__` is wrong where annotations are strings, as they are in both packages."""
    hints = get_type_hints(typed_dict, include_extras=True)
    mark = NotRequired if total else Required
    marked = {name for name, hint in hints.items() if get_origin(hint) is mark}
    return set(hints) - marked if total else marked


def test_every_role_of_the_sdk_is_known() -> None:
    arms = get_args(ChatCompletionMessageParam)
    roles = {role for arm in arms for role in literals(get_type_hints(arm)["role"])}
    ours = {role for arm in get_args(get_args(openai_messages.Message)[0]) for role in literals(role_hint(arm))}
    assert roles == ours


def role_hint(arm: Any) -> Any:
    return get_type_hints(arm)["role"]


def literals(hint: Any) -> set[str]:
    """The strings of a Literal, also under Required[...] or Optional[...]."""
    if get_origin(hint) is Literal:
        return set(get_args(hint))
    return set().union(*(literals(inner) for inner in get_args(hint)))


def test_every_reasoning_effort_of_the_sdk_is_known() -> None:
    ours = literals(ChatCompletionRequest.model_fields["reasoning_effort"].annotation)
    assert literals(ReasoningEffort) - ours == set()


def test_an_answers_message_may_be_sent_back_as_it_came() -> None:
    """The SDK writes every field of its answer type, null or not; and this server's answers are such messages."""
    answered = ChatCompletionMessage(role="assistant", content="Hello.", annotations=[])
    history = [USER, answered.model_dump(), USER]
    assert set(answered.model_dump()) <= keys(openai_messages.AssistantMessage)
    (request,) = ChatAdapter().parse(json.dumps({"model": "m", "messages": history}).encode(), {}, "r").requests
    assert request.prompt.messages[1] == {"role": "assistant", "content": "Hello."}  # pyright: ignore
