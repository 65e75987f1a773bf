"""The Responses API with the unmodified openai SDK: on every engine where text is enough, else on a real model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

from config.engines import EchoSettings
from engines.echo import EchoEngine
from gateway.app import GatewayOptions, create_app
from tests.gateway.live import Live, serving

GREEDY: Any = {"temperature": 0, "max_output_tokens": 24}
QUESTION = "Count from one to ten in words."
ADD: Any = {
    "type": "function",
    "name": "add",
    "description": "Adds two numbers.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": [1, 2]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
}


class City(BaseModel):
    name: str = Field(max_length=30)
    continent: Literal["Africa", "America", "Asia", "Europe", "Oceania"]


@pytest.fixture
def client(live: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=300) as sdk:
        yield sdk


@pytest.fixture
def native(native_live: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{native_live.url}/v1", api_key="none", max_retries=0, timeout=300) as sdk:
        yield sdk


def test_streamed_response_equals_the_whole_one(client: OpenAI, live: Live):
    whole = client.responses.create(model=live.model, input=QUESTION, instructions="Be terse.", **GREEDY)
    events = list(
        client.responses.create(model=live.model, input=QUESTION, instructions="Be terse.", stream=True, **GREEDY)
    )
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text != ""
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert last.response.output_text == text
    assert last.response.usage is not None
    assert whole.usage is not None
    assert last.response.usage.output_tokens == whole.usage.output_tokens
    assert last.response.status == whole.status


def test_stream_helper_accumulates_the_response(client: OpenAI, live: Live):
    with client.responses.stream(model=live.model, input=QUESTION, temperature=0, extra_body={"stop": [" "]}) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.status == "completed"
    assert final.output_text == snapshots[-1] != ""


def test_conversation_goes_on_from_the_stored_response_as_from_its_items(client: OpenAI, live: Live):
    first = client.responses.create(model=live.model, input="My name is Ada.", **GREEDY)
    chained = client.responses.create(model=live.model, input="And?", previous_response_id=first.id, **GREEDY)
    items: Any = [{"role": "user", "content": "My name is Ada."}, *first.output, {"role": "user", "content": "And?"}]
    resent = client.responses.create(model=live.model, input=items, store=False, **GREEDY)
    assert chained.output_text == resent.output_text
    assert chained.usage is not None
    assert resent.usage is not None
    assert chained.usage.input_tokens == resent.usage.input_tokens


def test_a_stored_response_is_retrieved_listed_and_deleted(client: OpenAI, live: Live):
    made = client.responses.create(model=live.model, input="Hi", metadata={"a": "b"}, **GREEDY)
    assert client.responses.retrieve(made.id) == made
    (item,) = client.responses.input_items.list(made.id)
    assert item.type == "message"
    assert item.content[0].text == "Hi"  # type: ignore[union-attr]
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(made.id)
    client.responses.delete(made.id)
    for gone in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            gone(made.id)
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=live.model, input="Hi", previous_response_id=made.id)
    assert refused.value.param == "previous_response_id"
    with pytest.raises(openai.BadRequestError) as replayed:
        list(client.responses.retrieve(client.responses.create(model=live.model, input="Hi").id, stream=True))
    assert replayed.value.param == "stream"


@pytest.mark.parametrize("stream", [False, True])
def test_refusals_are_the_sdks_own(client: OpenAI, live: Live, stream: bool):
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=live.model, input="Hi", background=True, stream=stream)
    assert refused.value.param == "background"
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="no-such-model", input="Hi", stream=stream)
    with pytest.raises(openai.BadRequestError) as long:
        client.responses.create(model=live.model, input="Hi " * 40_000, stream=stream)
    assert (long.value.param, long.value.code) == ("input", "context_length_exceeded")


async def test_async_client_streams(live: Live):
    async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        stream = await client.responses.create(model=live.model, input=QUESTION, stream=True, **GREEDY)
        assert [event.type async for event in stream][:2] == ["response.created", "response.in_progress"]


# --- on a real model --------------------------------------------------------------------------------------------------


def test_parse_gives_the_pydantic_model_streamed_too(native: OpenAI):
    asked: Any = {"model": "smollm2", "input": "Describe a city.", "temperature": 0, "max_output_tokens": 80}
    whole = native.responses.parse(text_format=City, **asked)
    assert isinstance(whole.output_parsed, City)
    with native.responses.stream(text_format=City, **asked) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_parsed == whole.output_parsed


def test_calls_are_made_and_their_outputs_fed_back(native: OpenAI):
    asked: Any = {"model": "smollm2", "tools": [ADD], "temperature": 0, "max_output_tokens": 80}
    required: Any = {"tool_choice": "required", "parallel_tool_calls": False}
    whole = native.responses.create(input="Add 4 and 2.", **required, **asked)
    (call,) = whole.output
    assert call.type == "function_call"
    assert set(json.loads(call.arguments)) == {"a", "b"}
    with native.responses.stream(input="Add 4 and 2.", **required, **asked) as stream:
        kinds = [event.type for event in stream]
        (streamed,) = stream.get_final_response().output
    assert "response.function_call_arguments.done" in kinds
    assert "response.output_text.delta" not in kinds
    assert streamed.type == "function_call"
    assert (streamed.name, streamed.arguments) == (call.name, call.arguments)
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "6"}
    answer = native.responses.create(
        input=[output],
        previous_response_id=whole.id,
        tool_choice="none",
        include=["message.output_text.logprobs"],
        **asked,
    )
    (message,) = answer.output
    assert message.type == "message"
    (part,) = message.content
    assert part.type == "output_text"
    assert "".join(token.token for token in part.logprobs or ()) == part.text != ""


def test_a_form_that_cannot_be_honoured_is_a_400_that_names_it(native: OpenAI):
    text: Any = {"format": {"type": "json_schema", "name": "n", "schema": {"not": {}}}}
    with pytest.raises(openai.BadRequestError) as refused:
        native.responses.create(model="smollm2", input="Hi", text=text)
    assert refused.value.param == "text.format.schema"


# --- the key ----------------------------------------------------------------------------------------------------------


def test_stored_responses_are_shown_to_whoever_has_the_key():
    app = create_app([EchoEngine(EchoSettings())], options=GatewayOptions(api_key="secret"))
    with serving(app, "echo") as server:
        url = f"{server.url}/v1"
        with OpenAI(base_url=url, api_key="secret", max_retries=0) as client:
            made = client.responses.create(model="echo", input="Hi")
            assert client.responses.retrieve(made.id).id == made.id
        with OpenAI(base_url=url, api_key="wrong", max_retries=0) as client:
            for refused in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
                with pytest.raises(openai.AuthenticationError):
                    refused(made.id)
