from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator

import pytest

from engines.api import GenerationEvent, GenerationRequest
from engines.errors import (
    EngineUnavailable,
    GenerationFailed,
    Overloaded,
    PromptTooLong,
    UpstreamError,
)
from gateway.streaming import MAX_RELAYED_BYTES
from tests.gateway.asgi import app_of, chat, complete
from tests.gateway.scripted import DONE, HELLO, STARTED, ScriptedEngine, forever, last, text, turn

STREAMED = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
TOO_LONG = PromptTooLong("The prompt has 9 tokens, the context holds 8.", field="messages")
REFUSALS = pytest.mark.parametrize(
    ("error", "status"),
    [
        pytest.param(TOO_LONG, 400, id="too-long"),
        pytest.param(Overloaded("Too many requests wait.", retry_after_s=7), 503, id="overloaded"),
        pytest.param(EngineUnavailable("The engine is starting."), 503, id="unavailable"),
        pytest.param(UpstreamError("No such model.", status=404), 404, id="upstream"),
        pytest.param(RuntimeError("secret"), 500, id="bug"),
    ],
)


@pytest.fixture(autouse=True)
async def no_task_outlives_its_request() -> AsyncGenerator[None, None]:
    yield
    await turn()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def cancelled() -> None:
    raise asyncio.CancelledError


def contents(events: list[dict[str, object]]) -> str:
    chunks = [event for event in events if isinstance(event, dict) and event.get("choices")]
    return "".join(chunk["choices"][0].get("delta", {}).get("content") or "" for chunk in chunks)  # type: ignore[index]


# --- before the first event -------------------------------------------------------------------------------------------


@STREAMED
@REFUSALS
async def test_error_before_the_first_event_is_an_ordinary_answer(stream: bool, error: Exception, status: int):
    engine = ScriptedEngine((error,))
    call = await chat(app_of(engine), stream=stream).run()
    assert call.status == status
    assert call.headers["content-type"] == "application/json"
    assert set(call.json()["error"]) == {"message", "type", "param", "code"}
    assert "secret" not in call.body.decode()
    assert call.headers.get("retry-after") == ("7" if isinstance(error, Overloaded) else None)
    assert engine.num_open == 0


async def test_nothing_is_sent_before_the_first_event():
    first_event = asyncio.Event()
    engine = ScriptedEngine((first_event.wait, *HELLO))
    call = chat(app_of(engine))
    task = call.start()
    await turn()
    assert engine.num_open == 1
    assert call.sent == []
    first_event.set()
    await task
    assert call.status == 200


async def test_acceptance_is_sent_before_any_text():
    engine = ScriptedEngine((STARTED, forever))
    call = complete(app_of(engine))  # this protocol says nothing when a request is accepted
    task = call.start()
    await turn()
    assert call.status == 200
    assert call.body == b""
    call.leave()
    await task


# --- the stream -------------------------------------------------------------------------------------------------------


async def test_stream_carries_every_piece_and_ends_once():
    call = await chat(app_of(ScriptedEngine(HELLO))).run()
    events = call.events()
    assert call.headers["content-type"].startswith("text/event-stream")
    assert call.headers["cache-control"] == "no-cache"
    assert call.headers["x-accel-buffering"] == "no"
    assert contents(events) == "Hello"
    assert events[-1] == "[DONE]"
    assert events.count("[DONE]") == 1
    assert call.complete


async def test_whole_answer_has_the_text_of_the_stream():
    call = await chat(app_of(ScriptedEngine(HELLO)), stream=False).run()
    assert call.status == 200
    assert call.json()["choices"][0]["message"]["content"] == "Hello"


async def test_event_is_written_when_it_comes():
    gates = [asyncio.Event() for _ in range(3)]
    script = (STARTED, gates[0].wait, text("a"), gates[1].wait, text("b"), gates[2].wait, last(""), DONE)
    call = chat(app_of(ScriptedEngine(script)))
    task = call.start()
    await turn()
    for number, gate in enumerate(gates):
        assert contents(call.events()) == "ab"[:number]
        gate.set()
        await turn()
    await task
    assert call.events()[-1] == "[DONE]"


async def test_events_that_come_together_leave_in_one_write():
    call = await chat(app_of(ScriptedEngine((STARTED, turn, text("a"), text("b"), text("c"), last("d"), DONE)))).run()
    assert len(call.writes) == 2
    assert contents(call.events()) == "abcd"


async def test_slow_client_holds_the_engine_back_and_misses_nothing():
    piece = "x" * 1000
    num_pieces = 4 * MAX_RELAYED_BYTES // len(piece)
    engine = ScriptedEngine((STARTED, *[text(piece)] * num_pieces, last(""), DONE))
    call = chat(app_of(engine))
    call.open_gate.clear()
    task = call.start()
    for _ in range(20):
        await turn()
    assert engine.num_yielded <= MAX_RELAYED_BYTES // len(piece) + 2
    call.open_gate.set()
    await task
    assert contents(call.events()) == piece * num_pieces


async def test_engine_cleans_up_in_peace_after_a_complete_answer():
    class Tidy(ScriptedEngine):
        is_tidy = False

        async def generate(self, _: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
            try:
                for event in (STARTED, last("Hello"), DONE):
                    yield event
            finally:
                await turn()
                self.is_tidy = True

    engine = Tidy()
    call = chat(app_of(engine))
    task = call.start()
    for _ in range(20):
        if call.complete:
            break
        await asyncio.sleep(0)
    assert call.complete
    assert not engine.is_tidy  # the client did not wait for it
    await task
    assert engine.is_tidy


# --- errors after the first event -------------------------------------------------------------------------------------


@REFUSALS
async def test_error_after_the_first_event_travels_in_band(error: Exception, status: int):
    engine = ScriptedEngine((STARTED, turn, text("Hel"), error))
    call = await chat(app_of(engine)).run()
    events = call.events()
    assert call.status == 200
    assert contents(events[:-2]) == "Hel"
    assert set(events[-2]["error"]) == {"message", "type", "param", "code"}
    assert events[-2]["error"]["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert events[-1] == "[DONE]"
    assert call.complete
    assert "secret" not in call.body.decode()
    assert engine.num_open == 0


async def test_engine_cancelled_from_within_is_a_failed_generation():
    call = await chat(app_of(ScriptedEngine((STARTED, turn, text("Hel"), cancelled)))).run()
    assert "before the answer was complete" in call.events()[-2]["error"]["message"]


@STREAMED
async def test_engine_that_ends_early_is_a_failed_generation(stream: bool):
    call = await chat(app_of(ScriptedEngine((STARTED, turn, text("Hel")))), stream=stream).run()
    error = call.events()[-2]["error"] if stream else call.json()["error"]
    assert call.status == (200 if stream else 500)
    assert "before the answer was complete" in error["message"]


async def test_bug_is_logged_with_its_traceback_and_named_by_the_request_id(caplog: pytest.LogCaptureFixture):
    call = chat(app_of(ScriptedEngine((STARTED, turn, RuntimeError("secret")))), headers={"x-request-id": "abc"})
    with caplog.at_level(logging.ERROR, "headrace.gateway"):
        await call.run()
    assert "request abc" in call.events()[-2]["error"]["message"]
    (entry,) = caplog.records
    assert "abc" in entry.getMessage()
    assert entry.exc_info is not None
    assert str(entry.exc_info[1]) == "secret"


# --- several prompts --------------------------------------------------------------------------------------------------


@STREAMED
async def test_prompts_of_one_request_run_side_by_side(stream: bool):
    both_run = asyncio.Barrier(2)
    engine = ScriptedEngine((STARTED, both_run.wait, text("a"), last("b"), DONE))
    call = await complete(app_of(engine), prompt=["one", "two"], stream=stream).run()
    if stream:
        texts = ["", ""]
        for event in call.events()[:-1]:
            choice = event["choices"][0]
            texts[choice["index"]] += choice["text"]
    else:
        texts = [choice["text"] for choice in call.json()["choices"]]
    assert texts == ["ab", "ab"]


@STREAMED
async def test_one_refused_prompt_refuses_the_request_and_cancels_the_others(stream: bool):
    engine = ScriptedEngine((STARTED, forever), (TOO_LONG,))
    call = await complete(app_of(engine), prompt=["one", "two"], stream=stream).run()
    assert call.status == 400
    assert engine.num_open == 0


async def test_failure_of_one_prompt_ends_the_stream_and_cancels_the_others():
    engine = ScriptedEngine((STARTED, text("a"), forever), (STARTED, turn, turn, GenerationFailed("Lost.")))
    call = await complete(app_of(engine), prompt=["one", "two"]).run()
    assert [event["error"]["message"] for event in call.events()[-2:-1]] == ["Lost."]
    assert call.events()[-1] == "[DONE]"
    assert engine.num_open == 0


# --- clients that leave -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        pytest.param((forever,), id="before-the-first-event"),
        pytest.param((STARTED, forever), id="after-acceptance"),
        pytest.param((STARTED, turn, text("a"), forever), id="in-the-text"),
    ],
)
@STREAMED
async def test_client_that_leaves_closes_the_generators(stream: bool, script: tuple[object, ...]):
    engine = ScriptedEngine(script)  # type: ignore[arg-type]
    call = complete(app_of(engine), prompt=["one", "two"], stream=stream)
    task = call.start()
    for _ in range(5):
        await turn()
    assert engine.num_open == 2
    call.leave()
    await task
    assert engine.num_open == 0


async def test_client_that_leaves_while_its_answer_waits_for_it_closes_the_generator():
    engine = ScriptedEngine((STARTED, *[text("x" * 1000)] * 1000, last(""), DONE))
    call = chat(app_of(engine))
    call.open_gate.clear()
    task = call.start()
    for _ in range(5):
        await turn()
    assert engine.num_open == 1
    call.leave()
    await task
    assert engine.num_open == 0


@pytest.mark.parametrize("num_turns", range(8))
@STREAMED
async def test_cancelled_request_closes_the_generators(stream: bool, num_turns: int):
    engine = ScriptedEngine((asyncio.Event().wait if num_turns > 5 else turn, STARTED, turn, text("a"), forever))
    task = complete(app_of(engine), prompt=["one", "two"], stream=stream).start()
    for _ in range(num_turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.num_open == 0


# --- silence ----------------------------------------------------------------------------------------------------------


async def a_while() -> None:
    await asyncio.sleep(0.1)


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.streaming.KEEP_ALIVE_S", 0.02)


@pytest.mark.usefixtures("restless")
async def test_a_silent_stream_says_that_it_is_alive_before_and_between_its_events():
    engine = ScriptedEngine((a_while, STARTED, text("Hel"), a_while, last("lo"), DONE))
    call = await chat(app_of(engine)).run()
    assert call.status == 200
    assert call.body.startswith(b"\n")
    assert b"\n\n\n" in call.body[call.body.index(b"Hel") :]
    events = [json.loads(line[6:]) for line in call.body.decode().splitlines() if line.startswith("data: {")]
    assert contents(events) == "Hello"


@pytest.mark.usefixtures("restless")
async def test_an_error_after_a_silence_travels_in_the_stream():
    call = await chat(app_of(ScriptedEngine((a_while, TOO_LONG)))).run()
    assert call.status == 200
    assert b"The prompt has 9 tokens" in call.body


async def test_a_stream_that_speaks_has_no_more_than_its_events():
    call = await chat(app_of(ScriptedEngine(HELLO))).run()
    assert call.body.startswith(b"data:")
    assert b"\n\n\n" not in call.body
