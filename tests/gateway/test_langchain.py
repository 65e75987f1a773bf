"""langchain-openai against a live server. Holds for every engine kind that `live` serves."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI

from tests.gateway.live import Live

MESSAGES = [SystemMessage("You are terse."), HumanMessage("Count from one to ten in words.")]


@pytest.fixture
def chat(live: Live) -> ChatOpenAI:
    settings: dict[str, Any] = {"base_url": f"{live.url}/v1", "api_key": "none", "max_retries": 0, "max_tokens": 24}
    return ChatOpenAI(model=live.model, temperature=0, stream_usage=True, **settings)


def test_invoke_answers_with_text_and_usage(chat: ChatOpenAI):
    answer = chat.invoke(MESSAGES)
    assert isinstance(answer, AIMessage)
    assert answer.text
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    assert answer.usage_metadata is not None
    assert 0 < answer.usage_metadata["output_tokens"] <= 24


def test_stream_adds_up_to_the_invoked_answer(chat: ChatOpenAI):
    whole = chat.invoke(MESSAGES)
    chunks = list(chat.stream(MESSAGES))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert sum((chunk for chunk in chunks[1:]), start=chunks[0]).usage_metadata == whole.usage_metadata


async def test_async_calls_equal_the_sync_ones(chat: ChatOpenAI):
    whole = await chat.ainvoke(MESSAGES)
    assert "".join([chunk.text async for chunk in chat.astream(MESSAGES)]) == whole.text


def test_batch_answers_each(chat: ChatOpenAI):
    questions = [f"Repeat the number {number}." for number in range(4)]
    alone = [chat.invoke(question).text for question in questions]
    assert [answer.text for answer in chat.batch(list(questions))] == alone


def test_stop_is_honoured(chat: ChatOpenAI):
    whole = chat.invoke(MESSAGES).text
    stop = whole[5:9]
    assert chat.bind(stop=[stop]).invoke(MESSAGES).text == whole[: whole.index(stop)]


def test_conversation_with_its_own_answer_goes_on(chat: ChatOpenAI):
    answer = chat.invoke(MESSAGES)
    assert chat.invoke([*MESSAGES, answer, HumanMessage("And backwards.")]).text


def test_chain_of_prompt_model_and_parser_streams(chat: ChatOpenAI):
    chain = ChatPromptTemplate.from_messages([("user", "Say {word}.")]) | chat | StrOutputParser()
    assert "".join(chain.stream({"word": "water"})) == chain.invoke({"word": "water"})


def test_completion_model_answers_and_streams(live: Live):
    settings: dict[str, Any] = {"base_url": f"{live.url}/v1", "api_key": "none", "max_retries": 0}
    model = OpenAI(model=live.model, temperature=0, max_tokens=16, **settings)
    assert "".join(model.stream("Once upon a time")) == model.invoke("Once upon a time")
