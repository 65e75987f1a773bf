"""A model on several ranks gives the tokens that it gives on one: gloo, processes on the CPU, float32."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from config.engines import NativeSettings
from engines.errors import EngineUnavailable
from engines.native.build import BuiltCore, build_core
from engines.native.distributed.member import refuse_unsplittable
from engines.native.distributed.ranks import Ranks
from engines.native.models import load_config
from engines.native.types import GREEN_LIST, GUMBEL, SYNTHID, AddSequence, TokenOutput, TokenParams, Watermark

VOCAB = 323  # no multiple of anything
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
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
PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.9, "seed": 11},
    "filters": {"temperature": 0.9, "seed": 11, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
    "penalties and logprobs": {
        "temperature": 0.7,
        "seed": 3,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "logit_bias": ((7, 2.0), (300, 1.0)),
        "logprobs": 3,
        "prompt_logprobs": 2,
    },
    "green list": {"temperature": 0.9, "seed": 11, "watermark": Watermark(GREEN_LIST, 5, 1, 2**31, delta=4.0)},
    "gumbel": {"temperature": 0.9, "seed": 11, "watermark": Watermark(GUMBEL, 5, 2)},
    "synthid": {"temperature": 0.9, "seed": 11, "top_k": 40, "watermark": Watermark(SYNTHID, 5, 2, depth=30)},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(3)
    folders = {name: tmp_path_factory.mktemp(name) for name in ("llama", "qwen3")}
    LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True)).save_pretrained(
        folders["llama"]
    )
    Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=False)).save_pretrained(folders["qwen3"])
    return folders


@contextmanager
def engine(folder: Path, world_size: int, **settings: object) -> Iterator[BuiltCore]:
    base = {"model": str(folder), "device": "cpu", "dtype": "float32", "kv_cache_memory": "1MiB", "max_num_seqs": 6}
    section = NativeSettings.model_validate({**base, "tensor_parallel_size": world_size, **settings})
    if world_size == 1:
        yield build_core(section, lambda *_: None)
        return
    ranks = Ranks(section, pytest.fail)
    try:
        ranks.start()
        yield build_core(section, lambda *_: None, ranks.member)
    finally:
        ranks.close()
        if dist.is_initialized():
            dist.destroy_process_group()


def prompts() -> list[list[int]]:
    rng = random.Random(5)
    shared = [rng.randrange(1, VOCAB) for _ in range(40)]
    alone = [[rng.randrange(1, VOCAB) for _ in range(rng.randint(1, 60))] for _ in range(5)]
    return alone + [shared + [rng.randrange(1, VOCAB) for _ in range(rng.randint(1, 20))] for _ in range(3)]


def generate(built: BuiltCore, params: dict[str, Any], *, overlapped: bool = False) -> list[list[TokenOutput]]:
    """All prompts at once, the outputs of each."""
    outputs: list[list[TokenOutput]] = [[] for _ in prompts()]
    for i, prompt in enumerate(prompts()):
        built.core.add(b"test", AddSequence(i, tuple(prompt), TokenParams(max_tokens=10, **params)))
    step = built.core.step_overlapped if overlapped else built.core.step
    while built.core.has_work:
        for sequence, output in step():
            outputs[sequence.key[1]].append(output)
    return outputs


def tokens(outputs: list[list[TokenOutput]]) -> list[list[int]]:
    return [[token for output in sequence for token in output.token_ids] for sequence in outputs]


@pytest.mark.parametrize(
    ("model", "world_size", "settings", "names"),
    [
        pytest.param("llama", 2, {"max_num_batched_tokens": 24, "attention_backend": "torch"}, PARAMS, id="llama-2"),
        pytest.param("qwen3", 2, {"block_size": 7}, ["greedy", "temperature"], id="qwen3-2-numba"),
        pytest.param("qwen3", 4, {"attention_backend": "torch"}, ["greedy"], id="qwen3-4-ranks-2-KV-heads"),
    ],
)
def test_ranks_give_the_tokens_of_one(checkpoints, model, world_size, settings, names):
    with engine(checkpoints[model], 1, **settings) as built:
        expected = {name: generate(built, PARAMS[name]) for name in names}
    for name in {"green list", "gumbel"} & {*names}:
        assert tokens(expected[name]) != tokens(expected["temperature"]), "the mark shows"
    with engine(checkpoints[model], world_size, **settings) as built:
        assert built.ready.tensor_parallel_size == world_size
        for name in names:
            outputs = generate(built, PARAMS[name])
            assert tokens(outputs) == tokens(expected[name]), name
            rows, truth = ([row for s in of for o in s for row in o.logprobs] for of in (outputs, expected[name]))
            assert [row.top_ids for row in rows] == [row.top_ids for row in truth]
            assert [row.logprob for row in rows] == pytest.approx([row.logprob for row in truth], abs=1e-4)
        if world_size == 2:
            assert tokens(generate(built, PARAMS["greedy"], overlapped=True)) == tokens(expected["greedy"])


@pytest.mark.parametrize("scheme", ["int4", "nf4", "fp4"])
def test_ranks_that_choose_codes_by_tokens_give_the_tokens_of_one(checkpoints, scheme):
    """The tokens pass through all ranks while they load."""
    settings = {"quantize": scheme, "quantize_group_size": 32, "attention_backend": "torch"}
    with engine(checkpoints["llama"], 1, **settings) as built:
        expected = tokens(generate(built, PARAMS["greedy"]))
    with engine(checkpoints["llama"], 2, **settings) as built:
        assert tokens(generate(built, PARAMS["greedy"])) == expected


@pytest.mark.parametrize(
    ("world_size", "words"),
    [
        pytest.param(3, r"tensor_parallel_size is 3, .* its 4 attention heads cannot be split evenly.*128 MLP", id="3"),
        pytest.param(8, r"tensor_parallel_size is 8, .* its 4 attention heads cannot", id="8"),
    ],
)
def test_a_size_that_does_not_divide_the_model_is_refused_by_both_numbers(checkpoints, world_size, words):
    with pytest.raises(EngineUnavailable, match=words):
        refuse_unsplittable(load_config(checkpoints["llama"]), world_size)


def test_kv_heads_may_be_fewer_than_ranks_only_if_they_divide_them(checkpoints):
    config = replace(load_config(checkpoints["llama"]), num_heads=12, num_kv_heads=6, intermediate_size=12)
    refuse_unsplittable(config, 12)
    with pytest.raises(EngineUnavailable, match="its 6 KV heads neither divide"):
        refuse_unsplittable(config, 4)
