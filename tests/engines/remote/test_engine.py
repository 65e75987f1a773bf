from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from config.engines import RemoteSettings
from engines.api import (
    ChatPrompt,
    Done,
    Finish,
    GenerationEvent,
    GenerationRequest,
    Health,
    ModelCard,
    PromptDetails,
    SamplingParams,
    Started,
    TextDelta,
    TextPrompt,
    Tokenized,
    TokenLogprob,
    TokensPrompt,
    ToolCallDelta,
    TopLogprob,
    Usage,
)
from engines.errors import EngineUnavailable, HeadraceError, UnsupportedByEngine, UpstreamError, UpstreamTimeout
from engines.remote import RemoteEngine

Handler = Callable[[httpx.Request], Any]
CHAT = ChatPrompt(messages=({"role": "user", "content": "hi"},))


def engine(handler: Handler, **settings: Any) -> RemoteEngine:
    values = {"upstream": "http://upstream.test/v1", "served_model_name": ("m",)} | settings
    return RemoteEngine(RemoteSettings(**values), transport=httpx.MockTransport(handler))


def request(**fields: Any) -> GenerationRequest:
    return GenerationRequest(**({"request_id": "r", "model": "m", "prompt": CHAT} | fields))


async def events(remote: RemoteEngine, wanted: GenerationRequest) -> list[GenerationEvent]:
    await remote.start()
    try:
        return [event async for event in remote.generate(wanted)]
    finally:
        await remote.aclose()


class Pieces(httpx.AsyncByteStream):
    """A body in pieces; a float is a pause in seconds, an exception is raised. Knows whether it was closed."""

    def __init__(self, *pieces: bytes | float | Exception) -> None:
        self._pieces = pieces
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, float):
                await asyncio.sleep(piece)
            else:
                yield piece

    async def aclose(self) -> None:
        self.closed = True


def sse(*events: Any) -> bytes:
    payloads = [event if isinstance(event, str) else json.dumps(event) for event in events]
    return "".join(f"data: {payload}\n\n" for payload in payloads).encode()


def chat_chunk(content: str | None = None, finish: str | None = None, index: int = 0, **choice: Any) -> dict[str, Any]:
    delta = {} if content is None else {"content": content}
    return {"id": "x", "choices": [{"index": index, "delta": delta, "finish_reason": finish, **choice}]}


def text_chunk(text: str, finish: str | None = None, **choice: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish, **choice}]}


USAGE = {
    "choices": [],
    "usage": {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}},
}
ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}


def whole(body: Any, status: int = 200) -> Handler:
    content = body if isinstance(body, str) else json.dumps(body)
    return lambda _: httpx.Response(status, stream=Pieces(content.encode()))


def streaming(*pieces: bytes | float | Exception) -> Handler:
    return lambda _: httpx.Response(200, stream=Pieces(*pieces))


# --- answers ----------------------------------------------------------------------------------------------------------


async def test_streamed_chat_becomes_events():
    body = sse(ROLE, chat_chunk("Hel"), chat_chunk("lo"), chat_chunk(finish="stop"), USAGE, "[DONE]")
    assert await events(engine(streaming(body)), request()) == [
        Started(prompt_tokens=0),
        TextDelta(0, "Hel", 1),
        TextDelta(0, "lo", 1),
        TextDelta(0, "", 0, finish=Finish("stop")),
        Done(Usage(prompt_tokens=9, completion_tokens=3, cached_tokens=4)),
    ]


def call_chunk(index: int, **call: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": index, **call}]}, "finish_reason": None}]}


async def test_streamed_reasoning_and_tool_calls_become_events():
    body = sse(
        ROLE,
        {"choices": [{"index": 0, "delta": {"reasoning_content": "Hm", "reasoning": "Hm"}}]},
        call_chunk(0, id="c1", type="function", function={"name": "f", "arguments": ""}),
        call_chunk(0, function={"arguments": "{}"}),
        call_chunk(1, id="c2", type="function", function={"name": "g", "arguments": "{}"}),
        chat_chunk(finish="tool_calls"),
        {"choices": [], "usage": USAGE["usage"] | {"completion_tokens_details": {"reasoning_tokens": 2}}},
        "[DONE]",
    )
    assert await events(engine(streaming(body)), request()) == [
        Started(prompt_tokens=0),
        TextDelta(0, "", 1, reasoning="Hm"),
        TextDelta(0, "", 1, tool_calls=(ToolCallDelta(0, "", "c1", "f"),)),
        TextDelta(0, "", 1, tool_calls=(ToolCallDelta(0, "{}"),)),
        TextDelta(0, "", 1, tool_calls=(ToolCallDelta(1, "{}", "c2", "g"),)),
        TextDelta(0, "", 0, finish=Finish("tool_calls")),
        Done(Usage(prompt_tokens=9, completion_tokens=3, cached_tokens=4, reasoning_tokens=2)),
    ]


async def test_whole_tool_calls_become_one_event():
    calls = [{"id": f"c{i}", "type": "function", "function": {"name": "f", "arguments": "{}"}} for i in range(2)]
    message = {"role": "assistant", "content": None, "reasoning": "Hm", "tool_calls": calls}
    answer = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}], "usage": USAGE["usage"]}
    _, delta, _ = await events(engine(whole(answer)), request(stream=False))
    assert isinstance(delta, TextDelta)
    assert delta.reasoning == "Hm"
    assert delta.tool_calls == (ToolCallDelta(0, "{}", "c0", "f"), ToolCallDelta(1, "{}", "c1", "f"))
    assert delta.finish == Finish("tool_calls")


async def test_streamed_completion_becomes_events():
    body = sse(text_chunk("a"), text_chunk("b", "length"), USAGE, "[DONE]")
    assert await events(engine(streaming(body)), request(prompt=TextPrompt("p"))) == [
        Started(prompt_tokens=0),
        TextDelta(0, "a", 1),
        TextDelta(0, "b", 1, finish=Finish("length")),
        Done(Usage(prompt_tokens=9, completion_tokens=3, cached_tokens=4)),
    ]


async def test_whole_answer_becomes_the_same_events():
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "Hello"},
        "finish_reason": "stop",
        "stop_reason": 5,
    }
    answer = USAGE | {"choices": [choice]}
    assert await events(engine(whole(answer)), request(stream=False)) == [
        Started(prompt_tokens=9, cached_tokens=4),
        TextDelta(0, "Hello", 3, finish=Finish("stop", 5)),
        Done(Usage(prompt_tokens=9, completion_tokens=3, cached_tokens=4)),
    ]


async def test_choices_are_kept_apart():
    body = sse(chat_chunk("a"), chat_chunk("b", index=1), chat_chunk(finish="stop", index=1), chat_chunk("c", "length"))
    got = await events(engine(streaming(body)), request(n=2))
    assert [(e.index, e.text) for e in got if isinstance(e, TextDelta)] == [(0, "a"), (1, "b"), (1, ""), (0, "c")]


async def test_usage_is_counted_where_the_upstream_tells_none():
    got = await events(engine(streaming(sse(chat_chunk("a"), chat_chunk("b", "stop"), "[DONE]"))), request())
    assert got[-1] == Done(Usage(prompt_tokens=0, completion_tokens=2))


@pytest.mark.parametrize(
    ("word", "reason"),
    [("stop", "stop"), ("eos_token", "stop"), ("length", "length"), ("content_filter", "abort")],
)
async def test_finish_reasons(word: str, reason: str):
    got = await events(engine(streaming(sse(chat_chunk("a", word)))), request())
    delta = got[1]
    assert isinstance(delta, TextDelta)
    assert delta.finish is not None
    assert delta.finish.reason == reason


async def test_chat_logprobs():
    top = [{"token": "a", "logprob": -0.1, "bytes": [97]}, {"token": "é", "logprob": -2.0, "bytes": None}]
    logprobs = {"content": [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": top}]}
    body = sse(chat_chunk("a", "stop", logprobs=logprobs))
    got = await events(engine(streaming(body)), request(sampling=SamplingParams(logprobs=2)))
    tops = (TopLogprob(-1, "a", b"a", -0.1), TopLogprob(-1, "é", "é".encode(), -2.0))
    assert got[1] == TextDelta(0, "a", 1, (), (TokenLogprob(-1, "a", b"a", -0.1, tops),), Finish("stop"))


async def test_completion_logprobs():
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [-0.5, -1.0], "top_logprobs": [{"x": -3.0, "a": -0.5}, None]}
    body = sse(text_chunk("ab", "stop", logprobs=logprobs))
    wanted = request(prompt=TextPrompt("p"), sampling=SamplingParams(logprobs=1))
    got = await events(engine(streaming(body)), wanted)
    first = TokenLogprob(-1, "a", b"a", -0.5, (TopLogprob(-1, "a", b"a", -0.5),))
    assert got[1] == TextDelta(0, "ab", 2, (), (first, TokenLogprob(-1, "b", b"b", -1.0)), Finish("stop"))


async def test_compressed_answer_is_read():
    import gzip

    body = gzip.compress(sse(chat_chunk("a", "stop")))
    remote = engine(lambda _: httpx.Response(200, headers={"content-encoding": "gzip"}, stream=Pieces(body)))
    assert TextDelta(0, "a", 1, finish=Finish("stop")) in await events(remote, request())


async def test_echo_gives_back_the_prompt():
    def handler(sent: httpx.Request) -> httpx.Response:
        if sent.url.path == "/detokenize":
            assert json.loads(sent.content) == {"model": "m", "tokens": [1, 2]}
            return httpx.Response(200, json={"prompt": "one two"})
        return httpx.Response(200, stream=Pieces(sse(text_chunk("a", "stop"))))

    text, *_ = await events(engine(handler), request(prompt=TextPrompt("p"), echo=True))
    ids, *_ = await events(engine(handler), request(prompt=TokensPrompt((1, 2)), echo=True))
    assert text == Started(prompt_tokens=0, prompt=PromptDetails(text="p", token_ids=()))
    assert ids == Started(prompt_tokens=0, prompt=PromptDetails(text="one two", token_ids=(1, 2)))


async def test_request_names_the_upstreams_model_and_carries_its_key():
    seen: list[httpx.Request] = []

    def handler(sent: httpx.Request) -> httpx.Response:
        seen.append(sent)
        return httpx.Response(200, stream=Pieces(sse(chat_chunk("a", "stop"))))

    await events(engine(handler, upstream_model="theirs", upstream_api_key="hush"), request())
    assert str(seen[0].url) == "http://upstream.test/v1/chat/completions"
    assert seen[0].headers["authorization"] == "Bearer hush"
    assert json.loads(seen[0].content)["model"] == "theirs"


# --- failures ---------------------------------------------------------------------------------------------------------


async def failure(remote: RemoteEngine, wanted: GenerationRequest | None = None) -> tuple[list[Any], HeadraceError]:
    """The events before the error, and the error."""
    await remote.start()
    got: list[Any] = []
    try:
        async for event in remote.generate(wanted or request()):
            got.append(event)  # noqa: PERF401 (a comprehension would lose them all)
    except HeadraceError as error:
        return got, error
    finally:
        await remote.aclose()
    pytest.fail(f"no error, but {got}")


@pytest.mark.parametrize(
    ("body", "message", "field", "code"),
    [
        ({"error": {"message": "bad", "param": "top_k", "code": "nope"}}, "bad", "top_k", "nope"),
        ({"object": "error", "message": "bad", "code": 422}, "bad", None, None),
        ({"detail": "Not Found"}, "Not Found", None, None),
        ("<html>", "The upstream answered with status 422.", None, None),
    ],
    ids=["openai", "flat", "detail", "html"],
)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_error_status_is_told_before_any_event(
    body: Any, message: str, field: str | None, code: str | None, stream: bool
):
    got, error = await failure(engine(whole(body, 422)), request(stream=stream))
    assert got == []
    assert isinstance(error, UpstreamError)
    assert (error.message, error.status, error.field, error.code) == (message, 422, field, code)


@pytest.mark.parametrize("status", [401, 403])
async def test_refused_key_is_not_repeated(status: int):
    body = {"error": {"message": "Incorrect API key provided: hush"}}
    _, error = await failure(engine(whole(body, status)))
    assert isinstance(error, UpstreamError)
    assert error.status == status
    assert "hush" not in error.message


async def test_error_in_the_stream_keeps_what_came_before():
    body = sse(chat_chunk("a"), {"error": {"message": "lost", "code": 500}})
    got, error = await failure(engine(streaming(body)))
    assert got[1:] == [TextDelta(0, "a", 1)]
    assert isinstance(error, UpstreamError)
    assert (error.message, error.status) == ("lost", 500)


async def test_error_as_the_first_event_comes_before_started():
    got, error = await failure(engine(streaming(sse({"error": "no"}))))
    assert (got, error.message) == ([], "no")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (sse(chat_chunk("a")), "1 of 1 choices unfinished"),
        (sse(chat_chunk("a"), "[DONE]"), "1 of 1 choices unfinished"),
        (b"", "1 of 1 choices unfinished"),
        (sse("not json"), "not an OpenAI answer"),
        (sse({"choices": [{"delta": {"content": 5}}]}), "not an OpenAI answer"),
        (sse(chat_chunk("a", "stop"), chat_chunk("b")), "went on with a choice"),
        (sse({"choices": [{"delta": {"function_call": {"name": "f"}}}]}), "function_call"),
    ],
    ids=["cut", "done too early", "empty", "not json", "wrong type", "after the end", "function_call"],
)
async def test_broken_stream_is_an_error(body: bytes, words: str):
    _, error = await failure(engine(streaming(body)))
    assert isinstance(error, UpstreamError)
    assert words in error.message


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (httpx.ConnectError("refused"), EngineUnavailable),
        (httpx.ConnectTimeout("slow"), UpstreamTimeout),
        (httpx.ReadError("reset"), UpstreamError),
        (httpx.RemoteProtocolError("gone"), UpstreamError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_network_failures_have_our_own_names(raised: Exception, expected: type[HeadraceError]):
    def handler(_: httpx.Request) -> httpx.Response:
        raise raised

    got, error = await failure(engine(handler))
    assert got == []
    assert type(error) is expected


async def test_connection_lost_in_the_stream():
    got, error = await failure(engine(streaming(sse(chat_chunk("a")), httpx.ReadError("reset"))))
    assert got[1:] == [TextDelta(0, "a", 1)]
    assert type(error) is UpstreamError


async def test_upstream_that_does_not_begin_is_given_up():
    _, error = await failure(engine(streaming(1.0, sse(chat_chunk("a", "stop"))), first_byte_timeout_s=0.05))
    assert isinstance(error, UpstreamTimeout)
    assert "first_byte_timeout_s" in error.message


async def test_upstream_that_stalls_is_given_up():
    got, error = await failure(engine(streaming(sse(chat_chunk("a")), 1.0), idle_timeout_s=0.05))
    assert got[1:] == [TextDelta(0, "a", 1)]
    assert isinstance(error, UpstreamTimeout)
    assert "idle_timeout_s" in error.message


async def test_stall_after_the_end_costs_nothing():
    body = sse(chat_chunk("a", "stop"), "[DONE]")
    got = await events(engine(streaming(body, 60.0)), request())
    assert isinstance(got[-1], Done)


async def test_closing_the_iterator_closes_the_upstreams_answer():
    pieces = Pieces(sse(chat_chunk("a")), 60.0)
    remote = engine(lambda _: httpx.Response(200, stream=pieces))
    await remote.start()
    async with aclosing(remote.generate(request())) as stream:
        assert isinstance(await anext(stream), Started)
        assert remote.stats().running == 1
    assert pieces.closed
    assert remote.stats().running == 0
    await remote.aclose()


async def test_cancelled_task_closes_the_upstreams_answer():
    pieces = Pieces(sse(chat_chunk("a")), 60.0)
    remote = engine(lambda _: httpx.Response(200, stream=pieces))
    await remote.start()
    task = asyncio.create_task(_collect(remote))
    await asyncio.sleep(0.05)
    assert remote.stats().running == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pieces.closed
    await remote.aclose()


async def _collect(remote: RemoteEngine) -> None:
    async with aclosing(remote.generate(request())) as stream:
        async for _ in stream:
            pass


# --- what it tells about itself ---------------------------------------------------------------------------------------


async def test_models_are_asked_from_the_upstream_where_no_name_is_given():
    listed = {"data": [{"id": "a", "created": 5, "owned_by": "them", "max_model_len": 100}, {"id": "b"}]}
    remote = engine(lambda _: httpx.Response(200, json=listed), served_model_name=())
    await remote.start()
    assert remote.models == (
        ModelCard(name="a", max_model_len=100, created=5, owned_by="them"),
        ModelCard(name="b", owned_by="upstream"),
    )
    await remote.aclose()


async def test_first_name_is_canonical_and_no_upstream_is_needed_to_start():
    remote = engine(_unreachable, served_model_name=("a", "b"))
    await remote.start()
    assert [(card.name, card.aliases) for card in remote.models] == [("a", ("b",))]
    await remote.aclose()


def _unreachable(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused")


@pytest.mark.parametrize(
    "handler",
    [_unreachable, lambda _: httpx.Response(404), lambda _: httpx.Response(200, json={"data": []})],
    ids=["unreachable", "no route", "no models"],
)
async def test_start_without_names_and_without_a_list_says_what_to_do(handler: Handler):
    remote = engine(handler, served_model_name=())
    with pytest.raises(EngineUnavailable, match="served_model_name"):
        await remote.start()
    await remote.aclose()


@pytest.mark.parametrize(
    ("handler", "ok"),
    [
        (lambda _: httpx.Response(200, json={"data": []}), True),
        (lambda _: httpx.Response(404), True),
        (lambda _: httpx.Response(401), False),
        (lambda _: httpx.Response(503), False),
        (_unreachable, False),
    ],
    ids=["lists", "no list", "key refused", "down", "unreachable"],
)
async def test_health_follows_the_upstream(handler: Handler, ok: bool):
    remote = engine(handler)
    await remote.start()
    health = await remote.health()
    assert health.ok is ok
    assert bool(health.detail) is not ok
    await remote.aclose()
    assert await remote.health() == Health(False, "stopped")


async def test_health_is_remembered_for_a_moment():
    asked: list[httpx.Request] = []

    def handler(sent: httpx.Request) -> httpx.Response:
        asked.append(sent)
        return httpx.Response(200, json={"data": []})

    remote = engine(handler)
    await remote.start()
    for _ in range(3):
        await remote.health()
    assert len(asked) == 1
    await remote.aclose()


async def test_tokenizer_routes_are_asked_beside_v1():
    def handler(sent: httpx.Request) -> httpx.Response:
        body = json.loads(sent.content)
        if sent.url.path == "/detokenize":
            return httpx.Response(200, json={"prompt": f"text of {body['tokens']}"})
        assert sent.url.path == "/tokenize"
        strs = {"token_strs": ["a", "b"]} if body.get("return_token_strs") else {}
        return httpx.Response(200, json={"count": 2, "max_model_len": 64, "tokens": [1, 2], **strs})

    remote = engine(handler)
    await remote.start()
    assert await remote.tokenize("m", TextPrompt("ab")) == Tokenized((1, 2), 64)
    assert await remote.tokenize("m", CHAT, with_texts=True) == Tokenized((1, 2), 64, ("a", "b"))
    assert await remote.detokenize("m", [1, 2]) == "text of [1, 2]"
    await remote.aclose()


async def test_upstream_without_a_tokenizer_is_unsupported():
    remote = engine(lambda _: httpx.Response(404))
    await remote.start()
    with pytest.raises(UnsupportedByEngine):
        await remote.tokenize("m", TextPrompt("ab"))
    with pytest.raises(UnsupportedByEngine):
        await remote.detokenize("m", [1])
    await remote.aclose()


async def test_stopped_engine_is_unavailable():
    remote = engine(streaming(b""))
    with pytest.raises(EngineUnavailable):
        await anext(remote.generate(request()))
