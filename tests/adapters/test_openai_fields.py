"""Every field that a request may have is honoured, is without effect and says why, or is refused by name.

The lists of fields come from the installed OpenAI SDK's own request types: a release of it that brings a new field
fails here until the field's place is decided.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NotRequired, Required, get_args, get_origin, get_type_hints

import pytest
from openai.types import completion_create_params
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionContentPartTextParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionFunctionMessageParam,
    ChatCompletionMessage,
    ChatCompletionMessageFunctionToolCallParam,
    ChatCompletionMessageParam,
    ChatCompletionStreamOptionsParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionToolMessageParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat import (
    completion_create_params as chat_create_params,
)
from openai.types.shared_params import ReasoningEffort

from adapters import openai_chat_types, openai_completion_types, openai_messages, openai_types
from adapters.adapter import Adapter
from adapters.openai_chat import ChatAdapter
from adapters.openai_chat_types import ChatCompletionRequest
from adapters.openai_completion_types import CompletionRequest
from adapters.openai_completions import CompletionsAdapter
from engines.api import Finish, TextDelta
from engines.errors import InvalidRequest

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
COMPLETION: dict[str, Any] = {"model": "m", "prompt": "Hi"}

TOOLS: dict[str, Any] = {"tools": [{"type": "function", "function": {"name": "f"}}]}

# A value for each honoured field that must change what is asked of an engine or how its answer is told.
# NEEDS: what a field needs beside it.
BOTH: dict[str, Any] = {
    "model": "other",
    "n": 2,
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_tokens": 7,
    "temperature": 0.5,
    "top_p": 0.5,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "seed": 5,
    "stop": "x",
    "logit_bias": {"5": 1},
    "top_k": 5,
    "min_p": 0.5,
    "typical_p": 0.5,
    "repetition_penalty": 1.5,
    "min_tokens": 2,
    "stop_token_ids": [5],
    "include_stop_str_in_output": True,
    "ignore_eos": True,
    "bad_words": ["x"],
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "truncate_prompt_tokens": 5,
    "prompt_logprobs": 2,
    "cache_salt": "x",
    "return_token_ids": True,
    "watermark": {"scheme": "gumbel", "key": "k"},
    "response_format": {"type": "json_object"},
    "structured_outputs": {"regex": "x+"},
    "guided_json": {"type": "object"},
    "guided_regex": "x+",
    "guided_choice": ["x"],
    "guided_grammar": 'root ::= "x"',
}
HONOURED_IN_CHAT = BOTH | {
    "messages": [{"role": "user", "content": "Ho"}],
    "max_completion_tokens": 7,
    "logprobs": True,
    "top_logprobs": 2,
    "reasoning_effort": "low",
    "thinking_token_budget": 5,
    "include_reasoning": False,
    "tools": TOOLS["tools"],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "add_generation_prompt": False,
    "continue_final_message": True,
    "chat_template_kwargs": {"x": 1},
    "add_special_tokens": True,
}
HONOURED_IN_COMPLETIONS = BOTH | {
    "prompt": "Ho",
    "best_of": 2,
    "echo": True,
    "logprobs": 2,
    "add_special_tokens": False,
}
NEEDS: dict[str, dict[str, Any]] = {
    "stream_options": {"stream": True},
    "top_logprobs": {"logprobs": True},
    "tool_choice": TOOLS,
    "parallel_tool_calls": TOOLS,
}

NO_EFFECT_VALUES: dict[str, Any] = {
    "user": "u",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "flex",
    "safety_identifier": "x",
    "prompt_cache_key": "x",
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {"mode": "explicit"},
    "parallel_tool_calls": True,
    "tool_prompt": "Use tools.",
}
# For each refused field a value that is refused, and those that ask for nothing.
REFUSED_VALUES: dict[str, tuple[Any, list[Any]]] = {
    "functions": ([{"name": "f"}], [[]]),
    "function_call": ({"name": "f"}, ["none", "auto"]),
    "modalities": (["text", "audio"], [["text"]]),
    "audio": ({"voice": "v", "format": "wav"}, []),
    "prediction": ({"type": "content", "content": "x"}, []),
    "web_search_options": ({}, []),
    "moderation": ({"model": "m"}, []),
    "verbosity": ("high", ["medium"]),
    "suffix": ("x", [""]),
}


@dataclass(frozen=True)
class Route:
    adapter: Adapter
    body: dict[str, Any]
    model: Any
    no_effect: Mapping[str, str]
    refused: Mapping[str, str]
    honoured: dict[str, Any]

    def asked(self, body: dict[str, Any], *, forwarded: bool = True) -> tuple[object, ...]:
        """All that a request body changes: what is asked of the engine, how reasoning is told, how a stream ends."""
        exchange = self.adapter.parse(json.dumps(body).encode(), {}, "r")
        requests = exchange.requests if forwarded else [replace(request, forwarded={}) for request in exchange.requests]
        thought = exchange.frame(0, TextDelta(0, "", reasoning="why", finish=Finish("stop")))
        return list(requests), exchange.stream, b"why" in thought, b"usage" in exchange.end()


ROUTES = [
    pytest.param(
        Route(
            ChatAdapter(),
            CHAT,
            ChatCompletionRequest,
            openai_chat_types.NO_EFFECT_FIELDS,
            openai_chat_types.REFUSED_FIELDS,
            HONOURED_IN_CHAT,
        ),
        id="chat",
    ),
    pytest.param(
        Route(
            CompletionsAdapter(),
            COMPLETION,
            CompletionRequest,
            openai_completion_types.NO_EFFECT_FIELDS,
            openai_completion_types.REFUSED_FIELDS,
            HONOURED_IN_COMPLETIONS,
        ),
        id="completions",
    ),
]


@pytest.mark.parametrize("route", ROUTES)
def test_each_field_is_honoured_or_without_effect_or_refused(route: Route) -> None:
    places = [set(route.honoured), set(route.no_effect), set(route.refused)]
    assert sum(len(place) for place in places) == len(set.union(*places)), "a field has two places"
    assert set.union(*places) == set(route.model.model_fields)


@pytest.mark.parametrize("route", ROUTES)
def test_an_honoured_field_changes_what_is_asked_and_null_does_not(route: Route) -> None:
    plain = route.asked(route.body)
    for field, value in route.honoured.items():
        needed = route.body | NEEDS.get(field, {})
        assert route.asked(needed | {field: value}) != route.asked(needed), field
        if field not in route.body:
            assert route.asked(route.body | {field: None}) == plain, field


@pytest.mark.parametrize("route", ROUTES)
def test_a_field_without_effect_is_forwarded_and_changes_nothing_else(route: Route) -> None:
    for field, reason in route.no_effect.items():
        sent = route.body | {field: NO_EFFECT_VALUES[field]}
        assert reason.endswith(".")
        assert route.asked(sent, forwarded=False) == route.asked(route.body, forwarded=False)
        (request,) = route.adapter.parse(json.dumps(sent).encode(), {}, "r").requests
        assert request.forwarded == {field: NO_EFFECT_VALUES[field]}


@pytest.mark.parametrize("route", ROUTES)
def test_a_refused_field_is_named_unless_it_asks_for_nothing(route: Route) -> None:
    for field in route.refused:
        value, harmless = REFUSED_VALUES[field]
        with pytest.raises(InvalidRequest) as caught:
            route.asked(route.body | {field: value})
        assert (caught.value.field, caught.value.code) == (field, "unsupported_parameter")
        for nothing in [None, *harmless]:
            assert route.asked(route.body | {field: nothing}) == route.asked(route.body)


# --- the SDK's types --------------------------------------------------------------------------------------------------


def keys(typed_dict: Any) -> set[str]:
    return set(typed_dict.__required_keys__ | typed_dict.__optional_keys__)


@pytest.mark.parametrize(
    ("sdk_types", "model"),
    [
        pytest.param(chat_create_params, ChatCompletionRequest, id="chat"),
        pytest.param(completion_create_params, CompletionRequest, id="completions"),
    ],
)
def test_every_field_of_the_sdks_request_is_known(sdk_types: Any, model: Any) -> None:
    sdk = keys(sdk_types.CompletionCreateParamsStreaming) | keys(sdk_types.CompletionCreateParamsNonStreaming)
    assert sdk - set(model.model_fields) == set()


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


def test_every_stream_option_of_the_sdk_is_known() -> None:
    assert keys(ChatCompletionStreamOptionsParam) - set(openai_types.StreamOptions.model_fields) == set()


def test_every_reasoning_effort_of_the_sdk_is_known() -> None:
    ours = literals(ChatCompletionRequest.model_fields["reasoning_effort"].annotation)
    assert literals(ReasoningEffort) - ours == set()


def test_an_answers_message_may_be_sent_back_as_it_came() -> None:
    """The SDK writes every field of its answer type, null or not; and this server's answers are such messages."""
    answered = ChatCompletionMessage(role="assistant", content="Hello.", annotations=[])
    history = [*CHAT["messages"], answered.model_dump(), CHAT["messages"][0]]
    assert set(answered.model_dump()) <= keys(openai_messages.AssistantMessage)
    (request,) = ChatAdapter().parse(json.dumps(CHAT | {"messages": history}).encode(), {}, "r").requests
    assert request.prompt.messages[1] == {"role": "assistant", "content": "Hello."}  # pyright: ignore
