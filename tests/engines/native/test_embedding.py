"""The gateway's half of an embedding: what becomes of texts, and how many inputs the core has at a time."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from engines.api import EmbeddingRequest, TextPrompt, TokensPrompt
from engines.errors import GenerationFailed, InvalidRequest, Overloaded, PromptTooLong
from engines.native.core_client import CoreClient, Sink
from engines.native.embedding import Embedder
from engines.native.embedding_config import EmbeddingConfig
from engines.native.tokenizer import Tokenizer
from engines.native.tokenizer_backend import set_boundary_tokens
from engines.native.types import FINISH_ERROR, FINISH_STOP, AddSequence, Pooling, Ready, TokenOutput
from tests.engines.native.small_tokenizers import byte_level, save

READY = Ready("m", "a", "cpu", "float32", "x", 500, 12, 0, 0, 8, 64, 0, 0.0, embedding_size=16)


class Core:
    """Stands for the client of a core: keeps what is submitted until it is told to answer."""

    def __init__(self) -> None:
        self.open: dict[int, tuple[AddSequence, Sink]] = {}
        self.most_open = 0
        self._next = 0

    def new_seq_id(self) -> int:
        self._next += 1
        return self._next

    def submit(self, message: AddSequence, sink: Sink) -> None:
        self.open[message.seq_id] = message, sink
        self.most_open = max(self.most_open, len(self.open))

    def abort(self, seq_ids: list[int]) -> None:
        for seq_id in seq_ids:
            self.open.pop(seq_id, None)

    def answer(self, count: int) -> None:
        """The newest first, so that order is not what they come in."""
        for seq_id in sorted(self.open, reverse=True)[:count]:
            message, sink = self.open.pop(seq_id)
            sink.push(TokenOutput(seq_id, (), FINISH_STOP, embedding=bytes(message.prompt_token_ids)))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    pipeline = byte_level()
    set_boundary_tokens(pipeline, "<|im_start|>", "<|im_end|>")
    return Tokenizer.load(save(pipeline, tmp_path_factory.mktemp("tokenizer")))


def embedder(tokenizer: Tokenizer, core: Core | None = None, max_tokens: int | None = None, **config: Any) -> Embedder:
    return Embedder(EmbeddingConfig(**config), tokenizer, cast(CoreClient, core or Core()), max_tokens)


def request(*inputs: Any, **fields: Any) -> EmbeddingRequest:
    prompts = tuple(TextPrompt(one) if isinstance(one, str) else TokensPrompt(tuple(one)) for one in inputs)
    return EmbeddingRequest(request_id="r", model="m", inputs=prompts, **fields)


def text_of(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    return tokenizer.decode(token_ids, skip_special_tokens=False)


def test_texts_are_prepared_as_the_models_files_say(tokenizer: Tokenizer):
    made = embedder(tokenizer, prompt="Q: ", lowercases=True).encode(request("A B", [5, 6]), READY)
    assert text_of(tokenizer, made[0]) == "<|im_start|>q: a b<|im_end|>"
    assert made[1] == [5, 6]


@pytest.mark.parametrize(
    ("kept", "side", "text"),
    [
        (5, "right", "<|im_start|>@#$<|im_end|>"),
        (5, "left", "<|im_start|>%&~<|im_end|>"),
        (8, "right", "<|im_start|>@#$%&~<|im_end|>"),
        (2, "right", "<|im_start|><|im_end|>"),
        (1, "left", "<|im_start|>"),
    ],
)
def test_truncation_leaves_what_stands_around_a_text(tokenizer: Tokenizer, kept: int, side: Any, text: str):
    asked = request("@#$%&~", truncate_prompt_tokens=kept, truncation_side=side)
    (made,) = embedder(tokenizer).encode(asked, READY)
    assert text_of(tokenizer, made) == text


def test_token_ids_are_truncated_like_any(tokenizer: Tokenizer):
    for side, left in (("right", [1, 2, 3]), ("left", [3, 4, 5])):
        asked = request([1, 2, 3, 4, 5], truncate_prompt_tokens=3, truncation_side=side)
        assert embedder(tokenizer).encode(asked, READY) == [left]


@pytest.mark.parametrize(("max_tokens", "limit"), [(None, 12), (4, 4), (99, 12)])
def test_the_longest_input_is_the_models_or_the_servers(tokenizer: Tokenizer, max_tokens: int | None, limit: int):
    made = embedder(tokenizer, max_tokens=max_tokens)
    assert made.encode(request([1] * limit), READY) == [[1] * limit]
    with pytest.raises(PromptTooLong, match=f"{limit + 1} tokens; the model takes at most {limit}"):
        made.encode(request([1] * (limit + 1)), READY)
    assert made.encode(request([1] * 99, truncate_prompt_tokens=-1), READY) == [[1] * limit]


def test_a_token_that_is_not_there_is_named_by_its_input(tokenizer: Tokenizer):
    with pytest.raises(InvalidRequest) as refused:
        embedder(tokenizer).encode(request([1], [500]), READY)
    assert refused.value.field == "input[1]"


async def test_vectors_come_in_the_order_of_their_inputs_and_a_window_at_a_time(tokenizer: Tokenizer):
    core = Core()
    inputs = [[place % 250, place // 250] for place in range(2048)]
    running = asyncio.create_task(embedder(tokenizer, core).run(inputs, Pooling(), ""))
    while not running.done():
        await asyncio.sleep(0)
        core.answer(100)
    embeddings = running.result()
    assert [list(vector) for vector in embeddings.vectors] == inputs
    assert embeddings.prompt_tokens == 4096
    assert 100 < core.most_open < 1024


@pytest.mark.parametrize(("words", "error"), [("overloaded", Overloaded), ("it broke", GenerationFailed)])
async def test_one_failure_ends_the_request_and_frees_the_rest(
    tokenizer: Tokenizer, words: str, error: type[Exception]
):
    core = Core()
    running = asyncio.create_task(embedder(tokenizer, core).run([[1], [2], [3]], Pooling(), ""))
    await asyncio.sleep(0)
    message, sink = core.open.pop(2)
    sink.push(TokenOutput(message.seq_id, (), FINISH_ERROR, error=words))
    with pytest.raises(error):
        await running
    assert core.open == {}
