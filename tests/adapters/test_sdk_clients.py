"""The clients' own libraries read what the adapters write; no server, only bytes."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from langchain_openai import ChatOpenAI
from openai import APIError, OpenAI

from adapters.adapter import Adapter, Exchange
from adapters.openai_chat import ChatAdapter
from adapters.openai_completions import CompletionsAdapter
from engines.errors import GenerationFailed
from tests.adapters.driving import collect, story

ADAPTERS: dict[str, Adapter] = {"/v1/chat/completions": ChatAdapter(), "/v1/completions": CompletionsAdapter()}


def whole_story(exchange: Exchange) -> bytes:
    if not exchange.stream:
        return exchange.response(collect(exchange, story()))
    return b"".join(exchange.frame(0, event) for event in story()) + exchange.end()


def cut_story(exchange: Exchange) -> bytes:
    sent = b"".join(exchange.frame(0, event) for event in story()[:2])
    return sent + exchange.stream_error(GenerationFailed("The engine was lost."), 500)


def transport(tell: Callable[[Exchange], bytes]) -> httpx.MockTransport:
    def respond(request: httpx.Request) -> httpx.Response:
        exchange = ADAPTERS[request.url.path].parse(request.content, {}, "r1")
        kind = "text/event-stream" if exchange.stream else "application/json"
        return httpx.Response(200, content=tell(exchange), headers={"content-type": kind})

    return httpx.MockTransport(respond)


@pytest.fixture
def client() -> OpenAI:
    http = httpx.Client(transport=transport(whole_story))
    return OpenAI(api_key="x", base_url="http://h/v1", http_client=http, max_retries=0)


def test_openai_reads_a_chat_whole_and_streamed(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])
    chunks = list(
        client.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "Hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert whole.choices[0].message.content == " a time"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == " a time"
    assert chunks[-1].usage == whole.usage
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"


def test_openai_assembles_a_chat_stream_with_logprobs(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="m", messages=[{"role": "user", "content": "Hi"}], logprobs=True, top_logprobs=2
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == " a time"
    content = final.choices[0].logprobs and final.choices[0].logprobs.content
    assert [entry.token for entry in content or ()] == [" a", " ti", "me", ""]


def test_openai_reads_a_completion_whole_and_streamed(client: OpenAI) -> None:
    whole = client.completions.create(model="m", prompt="Once upon", echo=True)
    chunks = list(client.completions.create(model="m", prompt="Once upon", echo=True, stream=True))
    assert whole.choices[0].text == "Once upon a time"
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Once upon a time"


def test_openai_raises_for_an_error_in_a_stream() -> None:
    http = httpx.Client(transport=transport(cut_story))
    client = OpenAI(api_key="x", base_url="http://h/v1", http_client=http, max_retries=0)
    stream = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}], stream=True)
    with pytest.raises(APIError, match=r"The engine was lost\."):
        list(stream)


def test_langchain_reads_a_chat_whole_and_streamed() -> None:
    http = httpx.Client(transport=transport(whole_story))
    model = ChatOpenAI(model="m", api_key="x", base_url="http://h/v1", http_client=http, stream_usage=True)  # type: ignore[arg-type]
    assert model.invoke("Hi").content == " a time"
    chunks = list(model.stream("Hi"))
    assert "".join(str(chunk.content) for chunk in chunks) == " a time"
    assert [chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata] == [4]
