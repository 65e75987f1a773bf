"""Request bodies as the clients' own libraries send them, recorded once and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.adapter import Adapter
from adapters.openai_chat import ChatAdapter
from adapters.openai_completions import CompletionsAdapter
from engines.api import ChatPrompt, GenerationRequest, SamplingParams, TextPrompt, TokensPrompt

FOLDER = Path(__file__).parent / "fixtures" / "requests"
ADAPTERS: dict[str, Adapter] = {
    "/v1/chat/completions": ChatAdapter(),
    "/v1/completions": CompletionsAdapter(),
}

BRIEF = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})


DEFAULTS = SamplingParams()


def chat(*messages: dict[str, Any], **kwargs: Any) -> ChatPrompt:
    return ChatPrompt(messages=messages or BRIEF, **kwargs)


def request(prompt: Any, sampling: SamplingParams = DEFAULTS, **fields: Any) -> GenerationRequest:
    return GenerationRequest(
        **{"request_id": "r", "model": "m", "stream": False, **fields}, prompt=prompt, sampling=sampling
    )


LANGCHAIN_COMPLETION = SamplingParams(max_tokens=256, temperature=0.7, top_p=1.0)
SCORING = SamplingParams(max_tokens=0, logprobs=2, prompt_logprobs=2)

MEANINGS: dict[str, list[GenerationRequest]] = {
    "openai_chat": [request(chat())],
    "openai_chat_nulls": [request(chat())],
    "openai_chat_stream": [
        request(
            chat(),
            SamplingParams(max_tokens=32, temperature=0.0, seed=7, stop=("\n\n",)),
            stream=True,
            forwarded={"user": "someone", "metadata": {"a": "b"}, "store": False},
        )
    ],
    "openai_chat_logprobs": [
        request(
            chat(template_kwargs={"enable_thinking": False}),
            SamplingParams(
                logit_bias=((42, -100.0),),
                presence_penalty=0.5,
                frequency_penalty=-0.5,
                top_k=20,
                min_p=0.1,
                repetition_penalty=1.1,
                logprobs=3,
            ),
            n=2,
        )
    ],
    "openai_chat_history": [
        request(
            chat(
                *BRIEF,
                {"role": "assistant", "content": "Hello."},
                {"role": "user", "content": [{"type": "text", "text": "And now?"}], "name": "ann"},
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
                    ],
                },
                {"role": "tool", "content": "noon", "tool_call_id": "call_1"},
            )
        )
    ],
    "openai_completion": [request(TextPrompt("Once"), SamplingParams(max_tokens=5))],
    "openai_completion_batch": [
        request(TextPrompt("Once"), SCORING, request_id="r-0", n=2, echo=True),
        request(TextPrompt("Twice"), SCORING, request_id="r-1", n=2, echo=True),
    ],
    "openai_completion_tokens": [
        request(TokensPrompt((1, 2, 3)), SamplingParams(max_tokens=16), request_id="r-0", stream=True),
        request(TokensPrompt((4,)), SamplingParams(max_tokens=16), request_id="r-1", stream=True),
    ],
    "langchain_chat": [request(chat())],
    "langchain_chat_stream": [
        request(
            chat({"role": "user", "content": "Hi"}),
            SamplingParams(max_tokens=20, temperature=0.0, seed=1, stop=("x",), logprobs=2),
            stream=True,
        )
    ],
    "langchain_chat_history": [
        request(
            chat(
                {"role": "system", "content": "s"},
                {"role": "user", "content": [{"type": "text", "text": "a"}]},
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
                    ],
                },
                {"role": "tool", "content": "r", "tool_call_id": "c1"},
                {"role": "assistant", "content": "ok", "name": "bot"},
            )
        )
    ],
    "langchain_completion": [request(TextPrompt("Hi"), LANGCHAIN_COMPLETION)],
    "langchain_completion_stream": [request(TextPrompt("Hi"), LANGCHAIN_COMPLETION, stream=True)],
}


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.json")))
def test_a_recorded_request_means_what_its_client_meant(name: str) -> None:
    recorded = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    exchange = ADAPTERS[recorded["path"]].parse(json.dumps(recorded["body"]).encode(), {}, "r")
    assert list(exchange.requests) == MEANINGS[name]
    assert exchange.stream is bool(recorded["body"].get("stream"))
