"""Reasoning over HTTP: a real model under a template that opens <think>, with budgets and forms after it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anthropic import Anthropic
from openai import OpenAI

from config.engines import NativeSettings
from engines.native.engine import NativeEngine
from gateway.app import create_app
from tests.gateway.live import serving

TEMPLATE = """\
{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor -%}
<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking -%}
<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"""
MESSAGES: Any = [{"role": "user", "content": "Is the sky blue? Say yes or no."}]
SAMPLED: Any = {"model": "thinker", "temperature": 0, "max_tokens": 60}
BUDGET = 4


@pytest.fixture(scope="module")
def client(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    template = tmp_path_factory.mktemp("template") / "thinking.jinja"
    template.write_text(TEMPLATE)
    section = NativeSettings(
        model=str(smollm2_gguf),
        device="cpu",
        kv_cache_memory="256MiB",
        served_model_name=("thinker",),
        chat_template=template,
    )
    with (
        serving(create_app([NativeEngine(section)]), "thinker") as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300) as client,
    ):
        yield client


def test_a_budget_ends_reasoning_and_the_answer_follows(client: OpenAI):
    answer = client.chat.completions.create(messages=MESSAGES, extra_body={"thinking_token_budget": BUDGET}, **SAMPLED)
    message: Any = answer.choices[0].message
    assert message.reasoning
    assert message.reasoning == message.reasoning_content
    assert "think>" not in message.reasoning + message.content
    assert answer.usage
    assert answer.usage.completion_tokens_details
    spent = answer.usage.completion_tokens_details.reasoning_tokens or 0
    assert BUDGET < spent < BUDGET + 12  # the closing tag, which is several tokens here, is part of it
    assert spent < answer.usage.completion_tokens


@pytest.mark.parametrize("budget", [None, BUDGET], ids=["none", "budget"])
def test_a_stream_tells_the_reasoning_and_the_answer_of_the_whole(client: OpenAI, budget: int | None):
    fields: Any = {"messages": MESSAGES, "extra_body": {"thinking_token_budget": budget}, **SAMPLED}
    whole: Any = client.chat.completions.create(**fields).choices[0].message
    reasoning = text = ""
    for chunk in client.chat.completions.create(stream=True, **fields):
        delta: Any = chunk.choices[0].delta
        if (thought := getattr(delta, "reasoning", None)) is not None:
            assert delta.reasoning_content == thought
            assert not text, "the answer has begun"
            reasoning += thought
        text += delta.content or ""
    assert (reasoning, text) == (whole.reasoning, whole.content)


def test_a_form_binds_the_answer_and_not_the_reasoning(client: OpenAI):
    body = {"structured_outputs": {"choice": ["yes", "no"]}, "thinking_token_budget": BUDGET}
    message: Any = client.chat.completions.create(messages=MESSAGES, extra_body=body, **SAMPLED).choices[0].message
    assert message.content in ("yes", "no")
    assert not re.fullmatch("yes|no", message.reasoning)


@pytest.mark.parametrize(
    "fields",
    [{"reasoning_effort": "none"}, {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}],
    ids=["reasoning_effort", "enable_thinking"],
)
def test_reasoning_can_be_switched_off(client: OpenAI, fields: dict[str, Any]):
    answer = client.chat.completions.create(messages=MESSAGES, **fields, **SAMPLED)
    message: Any = answer.choices[0].message
    assert message.content
    assert not hasattr(message, "reasoning")
    assert answer.usage
    assert answer.usage.completion_tokens_details is None


def test_reasoning_can_be_kept_out_of_the_answer(client: OpenAI):
    body = {"thinking_token_budget": BUDGET, "include_reasoning": False}
    message = client.chat.completions.create(messages=MESSAGES, extra_body=body, **SAMPLED).choices[0].message
    assert not hasattr(message, "reasoning")
    assert "think>" not in (message.content or "")


def test_responses_tell_reasoning_as_an_item_whole_and_streamed(client: OpenAI):
    asked: Any = {"model": "thinker", "input": MESSAGES, "temperature": 0, "max_output_tokens": 60}
    budget: Any = {"extra_body": {"thinking_token_budget": BUDGET}}
    whole = client.responses.create(**asked, **budget)
    assert [item.type for item in whole.output] == ["reasoning", "message"]
    assert whole.usage
    assert BUDGET < whole.usage.output_tokens_details.reasoning_tokens < whole.usage.output_tokens
    with client.responses.stream(**asked, **budget) as stream:
        thought = "".join(event.delta for event in stream if event.type == "response.reasoning_text.delta")
        final = stream.get_final_response()
    assert final.output_text == whole.output_text
    for response in (whole, final):
        item: Any = response.output[0]
        assert item.content[0].text == thought
    without = client.responses.create(**asked, reasoning={"effort": "none"})
    assert [item.type for item in without.output] == ["message"]


def test_messages_tell_thinking_as_a_block_that_may_be_sent_back(client: OpenAI):
    asked: Any = {"model": "thinker", "max_tokens": 60, "extra_body": {"temperature": 0}}
    thinking: Any = {"thinking": {"type": "enabled", "budget_tokens": BUDGET}}
    url = str(client.base_url).removesuffix("/v1/")
    with Anthropic(base_url=url, api_key="none", max_retries=0, timeout=300) as claude:
        whole = claude.messages.create(messages=MESSAGES, **asked, **thinking)
        assert [block.type for block in whole.content] == ["thinking", "text"]
        with claude.messages.stream(messages=MESSAGES, **asked, **thinking) as stream:
            final = stream.get_final_message()
        told = [[block.model_dump(exclude={"parsed_output"}) for block in answer.content] for answer in (whole, final)]
        assert told[0] == told[1]
        again: Any = [*MESSAGES, {"role": "assistant", "content": whole.content}, *MESSAGES]
        without = claude.messages.create(messages=again, thinking={"type": "disabled"}, **asked)
        assert [block.type for block in without.content] == ["text"]
