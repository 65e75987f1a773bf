"""Real models embed for real clients: MiniLM by its own files, SmolLM2 beside what it generates."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from langchain_openai import OpenAIEmbeddings
from openai.types import CreateEmbeddingResponse

from config.engines import NativeSettings
from engines.native.engine import NativeEngine
from gateway.app import create_app
from tests.gateway.live import Live, serving
from tests.minilm import minilm_folder

TEXTS = [
    "A man is eating food.",
    "Someone is having a meal.",
    "The girl is carrying a baby.",
    "A cheetah chases its prey across a field, which is long, dry and yellow at this time of the year.",
    "Interest rates rose again.",
]


@pytest.fixture(scope="module")
def folder() -> Path:
    return minilm_folder()


@pytest.fixture(scope="module")
def minilm(folder: Path) -> Iterator[Live]:
    section = NativeSettings(model=str(folder), device="cpu", served_model_name=("minilm",))
    with serving(create_app([NativeEngine(section)]), "minilm") as server:
        yield server


@pytest.fixture(scope="module")
def client(minilm: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{minilm.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def truth(folder: Path) -> torch.Tensor:
    """By sentence-transformers' formula, one text at a time: the mean of transformers' hidden states, of length 1."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    vectors: list[torch.Tensor] = []
    for text in TEXTS:
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        vectors.append(states.mean(0) / states.mean(0).norm())
    return torch.stack(vectors)


def embedded(client: openai.OpenAI, **fields: Any) -> torch.Tensor:
    answer = client.embeddings.create(model="minilm", **fields)
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return torch.tensor([item.embedding for item in answer.data])


def test_vectors_are_those_of_the_models_authors(client: openai.OpenAI, truth: torch.Tensor):
    together = embedded(client, input=TEXTS, encoding_format="float")
    alone = torch.cat([embedded(client, input=text) for text in TEXTS])
    for found in (together, alone):
        assert found.shape == (len(TEXTS), 384)
        assert (1 - (found * truth).sum(1)).abs().max() < 1e-5
        torch.testing.assert_close(found, truth, atol=1e-5, rtol=0)


def test_what_means_the_same_is_near(client: openai.OpenAI):
    vectors = embedded(client, input=TEXTS)
    near = vectors @ vectors[0]
    assert near[1:].argmax() == 0
    assert near[1] > 0.5 > near[2:].max()


def test_short_vectors_are_the_beginnings_of_long_ones(client: openai.OpenAI):
    whole, short = embedded(client, input=TEXTS), embedded(client, input=TEXTS, dimensions=64)
    torch.testing.assert_close(short, torch.nn.functional.normalize(whole[:, :64]), atol=1e-6, rtol=0)


def test_texts_and_their_tokens_are_the_same_input(client: openai.OpenAI, minilm: Live):
    tokens = [httpx.post(f"{minilm.url}/tokenize", json={"prompt": text}).json()["tokens"] for text in TEXTS[:2]]
    torch.testing.assert_close(embedded(client, input=tokens), embedded(client, input=TEXTS[:2]), atol=1e-6, rtol=0)
    torch.testing.assert_close(embedded(client, input=tokens[0]), embedded(client, input=TEXTS[0]))


def test_truncated_text_keeps_what_stands_around_it(client: openai.OpenAI):
    text = "one two three four five six"
    kept = client.embeddings.create(model="minilm", input=text, extra_body={"truncate_prompt_tokens": 5})
    assert kept.usage.prompt_tokens == 5
    expected = embedded(client, input="one two three")
    torch.testing.assert_close(torch.tensor([kept.data[0].embedding]), expected, atol=1e-6, rtol=0)
    asked = {"truncate_prompt_tokens": 5, "truncation_side": "left"}
    ends = client.embeddings.create(model="minilm", input=text, extra_body=asked)
    expected = embedded(client, input="four five six")
    torch.testing.assert_close(torch.tensor([ends.data[0].embedding]), expected, atol=1e-6, rtol=0)
    longest = client.embeddings.create(model="minilm", input="w " * 999, extra_body={"truncate_prompt_tokens": -1})
    assert longest.usage.prompt_tokens == 256


def test_langchain_embeds_documents_and_queries(minilm: Live, truth: torch.Tensor):
    embeddings = OpenAIEmbeddings(
        base_url=f"{minilm.url}/v1", api_key="none", model="minilm", check_embedding_ctx_length=False, max_retries=0
    )
    documents = torch.tensor(embeddings.embed_documents(TEXTS))
    torch.testing.assert_close(documents, truth, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(embeddings.embed_query(TEXTS[0])), truth[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": "w " * 300}, "input", "302 tokens; the model takes at most 256"),
        ({"input": ["a", "w " * 300]}, "input[1]", "302 tokens"),
        ({"input": [30522]}, "input", r"\[0, 30522\)"),
        ({"input": "a", "dimensions": 385}, "dimensions", "384"),
        ({"input": "a", "frobnicate": 1}, "frobnicate", "not known"),
        ({"input": [""]}, "input", "empty"),
    ],
    ids=["long", "second-is-long", "token", "dimensions", "field", "empty"],
)
def test_refusals_name_the_field_and_the_limit(minilm: Live, fields: dict[str, Any], param: str, words: str):
    response = httpx.post(f"{minilm.url}/v1/embeddings", json={"model": "minilm", **fields})
    assert response.status_code == 400
    error = openai.BadRequestError("", response=response, body=response.json()["error"])
    assert error.param == param
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(response.json()["error"]["message"])


@pytest.mark.parametrize(
    ("path", "fields"),
    [("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]})],
)
def test_a_model_that_embeds_does_not_generate(minilm: Live, path: str, fields: dict[str, Any]):
    response = httpx.post(f"{minilm.url}{path}", json={"model": "minilm", **fields})
    assert response.status_code == 400
    assert "/v1/embeddings" in response.json()["error"]["message"]


async def test_a_model_that_generates_embeds_on_the_side(native_live: Live):
    async with openai.AsyncOpenAI(base_url=f"{native_live.url}/v1", api_key="none", max_retries=0) as client:

        async def say() -> str:
            answer = await client.completions.create(
                model="smollm2", prompt="The river", max_tokens=40, temperature=0, extra_body={"ignore_eos": True}
            )
            return answer.choices[0].text

        async def embed(*texts: str) -> CreateEmbeddingResponse:
            return await client.embeddings.create(model="smollm2", input=list(texts))

        alone = await say()
        texts = ["A cat sleeps.", "A kitten dozes.", "def f(x): return x + 1"]
        said, vectors, again = await asyncio.gather(say(), embed(*texts), embed(*texts))
    assert said == alone
    assert len(vectors.data[0].embedding) == 576
    rows, twins = (torch.tensor([item.embedding for item in answer.data]) for answer in (vectors, again))
    assert ((rows * twins).sum(1) > 0.999).all()
    assert rows[0] @ rows[1] > rows[0] @ rows[2]
