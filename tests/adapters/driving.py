"""What the gateway does with an exchange, without a gateway: feed events, read frames."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from adapters.adapter import Collected, Exchange
from adapters.collect import Collector
from adapters.openai_chat import ChatAdapter, ChatExchange
from adapters.openai_completions import CompletionExchange, CompletionsAdapter
from engines.api import (
    Done,
    Finish,
    GenerationEvent,
    PromptDetails,
    Started,
    TextDelta,
    TokenLogprob,
    TopLogprob,
    Usage,
)

USER = [{"role": "user", "content": "Hi"}]


def chat(**fields: Any) -> ChatExchange:
    body = {"model": "m", "messages": USER, **fields}
    return ChatAdapter(system_fingerprint="fp").parse(json.dumps(body).encode(), {}, "r1")


def complete(**fields: Any) -> CompletionExchange:
    body = {"model": "m", "prompt": "Once", **fields}
    return CompletionsAdapter(system_fingerprint="fp").parse(json.dumps(body).encode(), {}, "r1")


def named_frames(data: bytes) -> list[dict[str, Any]]:
    """Events that say their name before their JSON, which says it as well."""
    events: list[dict[str, Any]] = []
    for frame in data.decode().split("\n\n")[:-1]:
        name, payload = frame.split("\n")
        event = json.loads(payload.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def frames(data: bytes) -> list[Any]:
    """The events of some bytes: parsed JSON, or the string "[DONE]"."""
    assert data == b"" or data.endswith(b"\n\n")
    payloads: list[Any] = []
    for frame in data.split(b"\n\n")[:-1]:
        assert frame.startswith(b"data: ")
        assert b"\n" not in frame
        text = frame[len(b"data: ") :].decode("utf-8")
        payloads.append(text if text == "[DONE]" else json.loads(text))
    return payloads


def stream(exchange: Exchange, *events: Sequence[GenerationEvent]) -> list[Any]:
    """All frames of a stream, `events` by request, one request after the other."""
    sent = [exchange.frame(index, event) for index, request in enumerate(events) for event in request]
    return frames(b"".join(sent) + exchange.end())


def collect(exchange: Exchange, *events: Iterable[GenerationEvent]) -> list[Collected]:
    collectors = [Collector(request) for request in exchange.requests]
    for collector, its_events in zip(collectors, events, strict=True):
        for event in its_events:
            collector.add(event)
    return [collector.result() for collector in collectors]


def answer(exchange: Exchange, *events: Iterable[GenerationEvent]) -> dict[str, Any]:
    return json.loads(exchange.response(collect(exchange, *events)))


def logprob(token_id: int, text: str, value: float, *top: tuple[int, str, float]) -> TokenLogprob:
    alternatives = tuple(TopLogprob(other, word, word.encode(), lp) for other, word, lp in top)
    return TokenLogprob(token_id, text, text.encode(), value, alternatives)


PROMPT = PromptDetails(
    text="Once upon",
    token_ids=(10, 11),
    logprobs=(None, logprob(11, " upon", -0.25, (11, " upon", -0.25), (12, " more", -2.0))),
)


def story(prompt: PromptDetails | None = PROMPT) -> list[GenerationEvent]:
    """One choice of four tokens, " a" + held back + " time" and EOS, ending on a stop token."""
    a = logprob(1, " a", -0.5, (1, " a", -0.5), (2, " the", -1.5))
    ti = logprob(3, " ti", -1.0, (4, " day", -0.75), (3, " ti", -1.0))
    me = logprob(5, "me", -0.125, (5, "me", -0.125), (6, "ny", -3.0))
    end = logprob(7, "", -0.0625, (7, "", -0.0625), (8, "!", -4.0))
    return [
        Started(prompt_tokens=2, cached_tokens=1, prompt=prompt),
        TextDelta(0, " a", 1, (1,), (a,)),
        TextDelta(0, "", 1, (3,), (ti,)),
        TextDelta(0, " time", 1, (5,), (me,)),
        TextDelta(0, "", 1, (7,), (end,), Finish("stop", 7)),
        Done(Usage(prompt_tokens=2, completion_tokens=4, cached_tokens=1)),
    ]
