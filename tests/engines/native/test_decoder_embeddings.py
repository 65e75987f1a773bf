"""A decoder's hidden states as vectors: the whole core against transformers, in chunks, beside generation, on ranks."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from config.engines import NativeSettings
from engines.errors import EngineUnavailable
from engines.native.build import BuiltCore, build_core
from engines.native.types import (
    CLS_TOKEN,
    FINISH_STOP,
    LAST_TOKEN,
    MAX_TOKENS,
    MEAN_TOKENS,
    AddSequence,
    Pooling,
    TokenOutput,
    TokenParams,
)
from tests.engines.native.distributed.test_tensor_parallel import engine

VOCAB = 320
SIZE = 64
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": SIZE,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": 0,
}
RNG = random.Random(5)
SHARED = [RNG.randrange(1, VOCAB) for _ in range(40)]
PROMPTS = [[RNG.randrange(1, VOCAB) for _ in range(length)] for length in (1, 2, 17, 60)]
PROMPTS += [SHARED + [RNG.randrange(1, VOCAB) for _ in range(length)] for length in (1, 1, 9)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    model.save_pretrained(folder := tmp_path_factory.mktemp("llama"))
    return folder, model.model


def truth(body: Any, mode: int) -> list[torch.Tensor]:
    vectors: list[torch.Tensor] = []
    for prompt in PROMPTS:
        with torch.no_grad():
            states = body(torch.tensor([prompt])).last_hidden_state[0]
        pooled = {LAST_TOKEN: states[-1], MEAN_TOKENS: states.mean(0), CLS_TOKEN: states[0]}
        vector = pooled.get(mode, states.max(0).values)
        vectors.append(vector / vector.norm())
    return vectors


def build(folder: Path, **settings: Any) -> BuiltCore:
    fields = {"model": str(folder), "device": "cpu", "dtype": "float32", "cpu_threads": 1, **settings}
    return build_core(NativeSettings.model_validate(fields), lambda *_: None)


def ask(built: BuiltCore, *params: TokenParams, overlapped: bool = False) -> list[TokenOutput]:
    """Each prompt's outputs as one, all asked at once; prompts beyond the last of `params` have that."""
    for i, prompt in enumerate(PROMPTS):
        built.core.add(b"c", AddSequence(i, tuple(prompt), params[min(i, len(params) - 1)]))
    whole: dict[int, TokenOutput] = {}
    step = built.core.step_overlapped if overlapped else built.core.step
    while built.core.has_work:
        for _, output in step():
            before = whole.get(output.seq_id)
            token_ids = (*(before.token_ids if before else ()), *output.token_ids)
            whole[output.seq_id] = msgspec.structs.replace(output, token_ids=token_ids)
    assert built.core.stats().kv_blocks_used == 0
    return [whole[i] for i in range(len(PROMPTS))]


def pooled(mode: int, **fields: Any) -> TokenParams:
    return TokenParams(max_tokens=0, pooling=Pooling(mode, **fields))


def vectors(outputs: list[TokenOutput]) -> list[torch.Tensor]:
    assert all(output.finish == FINISH_STOP and not output.token_ids for output in outputs)
    return [torch.tensor(struct.unpack(f"<{len(o.embedding) // 4}f", o.embedding)) for o in outputs]


def check(outputs: list[TokenOutput], expected: list[torch.Tensor]) -> None:
    torch.testing.assert_close(torch.stack(vectors(outputs)), torch.stack(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"block_size": 7, "max_num_batched_tokens": 9, "max_num_seqs": 3}, id="small-chunks"),
        pytest.param({"task": "embed", "attention_backend": "torch"}, id="headless"),
    ],
)
def test_vectors_equal_transformers_whatever_is_cached(llama, settings: dict[str, Any]):
    folder, body = llama
    built = build(folder, **settings)
    assert built.ready.generates == ("task" not in settings)
    assert built.ready.embedding_size == SIZE
    for mode in (LAST_TOKEN, MEAN_TOKENS, CLS_TOKEN, MAX_TOKENS):
        expected = truth(body, mode)
        check(ask(built, pooled(mode)), expected)
        again = ask(built, pooled(mode), overlapped=True)
        check(again, expected)
        assert (sum(output.cached_tokens for output in again) > 0) == (mode == LAST_TOKEN), "a mean needs every token"


def test_embedding_beside_generation_changes_neither(llama):
    folder, body = llama
    greedy = TokenParams(max_tokens=12, temperature=0.0)
    built = build(folder, max_num_batched_tokens=16, max_num_seqs=8, prefix_caching=False)
    alone = ask(built, greedy)
    expected = truth(body, MEAN_TOKENS)
    mixed = [greedy if i % 2 else pooled(MEAN_TOKENS) for i in range(len(PROMPTS))]
    for overlapped in (False, True):
        together = ask(built, *mixed, overlapped=overlapped)
        check(together[::2], expected[::2])
        assert [output.token_ids for output in together[1::2]] == [output.token_ids for output in alone[1::2]]


def test_dimensions_cut_the_vector_and_scale_what_is_left(llama):
    folder, body = llama
    short = vectors(ask(build(folder), pooled(LAST_TOKEN, dimensions=10)))
    cut = [vector[:10] / vector[:10].norm() for vector in truth(body, LAST_TOKEN)]
    torch.testing.assert_close(torch.stack(short), torch.stack(cut), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_checkpoint_of_the_body_alone_embeds(tmp_path: Path, tied: bool):
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(3)
    body = Qwen3Model(Qwen3Config(**SIZES, tie_word_embeddings=tied)).eval()
    body.save_pretrained(tmp_path)
    built = build(tmp_path)
    assert not built.ready.generates
    check(ask(built, pooled(LAST_TOKEN)), truth(body, LAST_TOKEN))
    with pytest.raises(EngineUnavailable, match="no LM head"):
        build(tmp_path, task="generate")


def test_a_model_split_over_ranks_gives_the_same_vectors(llama):
    folder, body = llama
    with engine(folder, 2, attention_backend="torch", max_num_batched_tokens=24, cpu_threads=2) as built:
        check(ask(built, pooled(MEAN_TOKENS)), truth(body, MEAN_TOKENS))
