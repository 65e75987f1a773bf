"""The Messages API with the unmodified anthropic SDK: on every engine where text is enough, else on a real model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import httpx
import pytest
from anthropic import Anthropic, AsyncAnthropic, beta_tool
from pydantic import BaseModel

from config.engines import EchoSettings
from engines.echo import EchoEngine
from engines.errors import GenerationFailed, Overloaded
from gateway.app import GatewayOptions, create_app
from tests.gateway.live import Live, serving
from tests.gateway.scripted import STARTED, ScriptedEngine, text

MESSAGES: Any = [{"role": "user", "content": "Count from one to ten in words."}]
SHORT: Any = {"max_tokens": 24, "extra_body": {"temperature": 0}}
ADD: Any = {
    "name": "add",
    "description": "Adds two numbers.",
    "strict": True,
    "input_schema": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": [1, 2]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def client(live: Live) -> Iterator[Anthropic]:
    with Anthropic(base_url=live.url, api_key="none", max_retries=0, timeout=300) as sdk:
        yield sdk


@pytest.fixture
def native(native_live: Live) -> Iterator[Anthropic]:
    with Anthropic(base_url=native_live.url, api_key="none", max_retries=0, timeout=300) as sdk:
        yield sdk


def text_of(message: Any) -> str:
    (block,) = message.content
    assert block.type == "text"
    return block.text


def test_streamed_message_equals_the_whole_one(client: Anthropic, live: Live):
    asked: Any = {"model": live.model, "messages": MESSAGES, "system": "You are terse.", **SHORT}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(pieces) == text_of(final) == text_of(whole) != ""
    assert (final.stop_reason, final.stop_sequence) == (whole.stop_reason, whole.stop_sequence)
    assert final.usage.output_tokens == whole.usage.output_tokens <= 24


def test_stop_sequence_is_told(client: Anthropic, live: Live):
    asked: Any = {"model": live.model, "messages": MESSAGES, **SHORT}
    full = text_of(client.messages.create(**asked))
    stop = full[3:6]
    cut = client.messages.create(**asked, stop_sequences=["@@@", stop])
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop)
    assert text_of(cut) == full[: full.index(stop)]


def test_counted_tokens_are_those_of_the_prompt(client: Anthropic, live: Live):
    asked: Any = {"model": live.model, "messages": MESSAGES, "system": [{"type": "text", "text": "You are terse."}]}
    usage = client.messages.create(**asked, **SHORT).usage
    counted = client.messages.count_tokens(**asked).input_tokens
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)


@pytest.mark.parametrize("stream", [False, True])
def test_refusals_are_the_sdks_own(client: Anthropic, live: Live, stream: bool):
    image: Any = [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}]
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\]\.content\[0\]\.type"):
        client.messages.create(model=live.model, messages=image, max_tokens=5, stream=stream)
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="no-such-model", messages=MESSAGES, max_tokens=5, stream=stream)
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.messages.create(
            model=live.model, messages=MESSAGES, max_tokens=5, stream=stream, extra_body={"frobnicate": 1}
        )
    assert isinstance(refused.value.body, dict)
    assert refused.value.body["error"]["type"] == "invalid_request_error"
    long: Any = [{"role": "user", "content": "Hi " * 40_000}]
    with pytest.raises(anthropic.BadRequestError, match="messages"):
        client.messages.create(model=live.model, messages=long, max_tokens=5, stream=stream)


async def test_async_and_beta_clients_stream(live: Live):
    async with AsyncAnthropic(base_url=live.url, api_key="none", max_retries=0, timeout=300) as client:
        stream = await client.messages.create(model=live.model, messages=MESSAGES, stream=True, **SHORT)
        kinds = [event.type async for event in stream]
        assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
        answer = await client.beta.messages.create(model=live.model, messages=MESSAGES, betas=["x"], **SHORT)
        assert answer.content


def test_models_are_listed_in_pages_and_retrieved(native: Anthropic):
    whole = native.models.list()
    assert [model.id for model in whole] == ["smollm2", "smollm2-alias"]
    assert (whole.has_more, whole.first_id, whole.last_id) == (False, "smollm2", "smollm2-alias")
    first = native.models.list(limit=1)
    assert (len(first.data), first.has_more) == (1, True)
    assert [model.id for model in first] == [model.id for model in whole]
    assert [model.id for model in native.models.list(before_id="smollm2-alias", limit=1)] == ["smollm2"]
    model = native.models.retrieve("smollm2-alias")
    assert (model.type, model.display_name, model.lifecycle) == ("model", "smollm2-alias", "active")
    assert model.created_at.tzinfo is not None
    assert model.max_input_tokens is not None
    with pytest.raises(anthropic.NotFoundError):
        native.models.retrieve("no/such-model")
    with pytest.raises(anthropic.BadRequestError, match="after_id"):
        native.models.list(after_id="no-such-model")
    with pytest.raises(anthropic.BadRequestError, match="limit"):
        native.models.list(limit=0)


async def test_models_are_listed_to_async_and_beta_clients(live: Live):
    async with AsyncAnthropic(base_url=live.url, api_key="none", max_retries=0) as client:
        assert live.model in [model.id async for model in client.models.list()]
        assert live.model in [model.id async for model in client.beta.models.list(lifecycle=["active"])]
        assert [model.id async for model in client.models.list(lifecycle=["retired"])] == []


# --- on a real model --------------------------------------------------------------------------------------------------


def test_calls_are_made_and_their_results_fed_back(native: Anthropic):
    asked: Any = {"model": "smollm2", "tools": [ADD], "max_tokens": 80, "extra_body": {"temperature": 0}}
    question: Any = {"role": "user", "content": "Add 4 and 2."}
    choice: Any = {"type": "any", "disable_parallel_tool_use": True}
    whole = native.messages.create(messages=[question], tool_choice=choice, **asked)
    assert whole.stop_reason == "tool_use"
    (call,) = whole.content
    assert call.type == "tool_use"
    assert set(call.input) == {"a", "b"}
    with native.messages.stream(messages=[question], tool_choice=choice, **asked) as stream:
        fragments = [event.partial_json for event in stream if event.type == "input_json"]
        (streamed,) = stream.get_final_message().content
    assert fragments
    assert streamed.type == "tool_use"
    assert (streamed.name, streamed.input) == (call.name, call.input)
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "6"}
    history: Any = [question, {"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
    answer = native.messages.create(messages=history, tool_choice={"type": "none"}, **asked)
    assert text_of(answer)


def test_answer_begins_with_what_the_assistant_began(native: Anthropic):
    begun: Any = [*MESSAGES, {"role": "assistant", "content": "One, two, three, four,"}]
    assert "five" in text_of(native.messages.create(model="smollm2", messages=begun, **SHORT))


def test_a_schema_is_kept_to(native: Anthropic):
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    config: Any = {"format": {"type": "json_schema", "schema": schema}}
    answer = native.messages.create(model="smollm2", messages=MESSAGES, output_config=config, **SHORT)
    assert text_of(answer).replace(" ", "").replace("\n", "") in ('{"n":1}', '{"n":2}')
    bad: Any = {"format": {"type": "json_schema", "schema": {"not": {}}}}
    with pytest.raises(anthropic.BadRequestError, match=r"output_config\.format\.schema"):
        native.messages.create(model="smollm2", messages=MESSAGES, output_config=bad, **SHORT)


class Number(BaseModel):
    n: Literal[1, 2]


def test_parse_gives_the_pydantic_model_streamed_too(native: Anthropic):
    asked: Any = {"model": "smollm2", "messages": MESSAGES, "output_format": Number, **SHORT}
    whole = native.messages.parse(**asked)
    assert isinstance(whole.parsed_output, Number)
    with native.messages.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_message().parsed_output == whole.parsed_output
    assert {"message_start", "content_block_start", "text", "content_block_stop", "message_stop"} <= kinds


async def test_async_helpers_equal_the_sync_ones(native: Anthropic, native_live: Live):
    asked: Any = {"model": "smollm2", "messages": MESSAGES, "output_format": Number, **SHORT}
    whole = native.messages.parse(**asked)
    async with AsyncAnthropic(base_url=native_live.url, api_key="none", max_retries=0, timeout=300) as client:
        assert (await client.messages.parse(**asked)).parsed_output == whole.parsed_output
        async with client.messages.stream(**asked) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            final = await stream.get_final_message()
    assert final.parsed_output == whole.parsed_output
    assert text == text_of(final) == text_of(whole)


def test_tools_that_are_functions_are_called_and_their_results_fed_back(native: Anthropic):
    asked: list[int] = []

    @beta_tool
    def double(number: Literal[1, 2]) -> str:
        """Doubles a number.

        Args:
            number: which one
        """
        asked.append(number)
        return str(2 * number)

    runner = native.beta.messages.tool_runner(
        model="smollm2",
        messages=[{"role": "user", "content": "Double 2."}],
        tools=[double],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        max_iterations=2,
        max_tokens=60,
    )
    reasons = [message.stop_reason for message in runner]
    assert reasons == ["tool_use", "tool_use"]
    assert asked
    assert set(asked) <= {1, 2}


# --- the key, and errors that only a gateway has ----------------------------------------------------------------------


def test_the_key_is_taken_from_either_header_and_refusals_have_anthropics_shape():
    app = create_app([EchoEngine(EchoSettings())], options=GatewayOptions(api_key="secret"))
    with serving(app, "echo") as server:
        for settings in ({"api_key": "secret"}, {"auth_token": "secret"}):
            with Anthropic(base_url=server.url, max_retries=0, **settings) as client:  # type: ignore[arg-type]
                assert text_of(client.messages.create(model="echo", messages=MESSAGES, max_tokens=5))
        with Anthropic(base_url=server.url, api_key="wrong", max_retries=0) as client:
            with pytest.raises(anthropic.AuthenticationError) as refused:
                client.messages.create(model="echo", messages=MESSAGES, max_tokens=5)
            with pytest.raises(anthropic.AuthenticationError):
                client.messages.count_tokens(model="echo", messages=MESSAGES)
        assert isinstance(refused.value.body, dict)
        assert refused.value.body["error"]["type"] == "authentication_error"
        missing = httpx.get(f"{server.url}/v1/messages/batches").json()
        assert missing["error"]["type"] == "not_found_error"


def test_errors_of_the_engine_are_raised_as_the_sdk_knows_them():
    engine = ScriptedEngine([Overloaded("full")], [STARTED, text("Hel"), GenerationFailed("lost")])
    with (
        serving(create_app([engine]), "scripted") as server,
        Anthropic(base_url=server.url, api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(anthropic.APIStatusError) as full:
            client.messages.create(model="scripted", messages=MESSAGES, max_tokens=5)
        assert full.value.status_code == 529
        with pytest.raises(anthropic.APIStatusError, match="lost"):
            list(client.messages.create(model="scripted", messages=MESSAGES, max_tokens=5, stream=True))
