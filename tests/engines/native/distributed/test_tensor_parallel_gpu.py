"""A model on two GPUs gives the tokens that it gives on one: NCCL, symmetric memory, graphs, float32."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from engines.native.types import TokenOutput
from tests.engines.native.distributed.test_tensor_parallel import PARAMS, SIZES, engine, generate, tokens

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs"),
]

SETTINGS: dict[str, Any] = {"device": "cuda", "kv_cache_memory": "64MiB", "max_model_len": 256}
ENDS_WITHIN_S = 180


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("qwen3")
    sizes = {**SIZES, "hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    Qwen3ForCausalLM(Qwen3Config(**sizes, tie_word_embeddings=False)).save_pretrained(folder)
    return folder


def lead(folder: Path, answers: Connection) -> None:
    """Rank 0, in a process of its own: NCCL's group does not end while graphs that it was captured in exist."""
    with engine(folder, 2, **SETTINGS) as built:
        for name, params in PARAMS.items():
            for overlapped in (False, True):
                answers.send((name, overlapped, generate(built, params, overlapped=overlapped)))
        os._exit(0)


def test_two_gpus_give_the_tokens_of_one(checkpoint: Path):
    with engine(checkpoint, 1, **SETTINGS) as built:
        expected = {name: generate(built, PARAMS[name]) for name in PARAMS}
    answers, theirs = multiprocessing.Pipe(duplex=False)
    leader = multiprocessing.get_context("spawn").Process(target=lead, args=(checkpoint, theirs))
    leader.start()
    theirs.close()
    try:
        for _ in range(2 * len(PARAMS)):
            assert answers.poll(ENDS_WITHIN_S), "no answer from two ranks"
            name, overlapped, outputs = answers.recv()
            assert tokens(outputs) == tokens(expected[name]), (name, overlapped)
            assert logprobs(outputs) == pytest.approx(logprobs(expected[name]), abs=1e-3)
    finally:
        leader.kill()
        leader.join()


def logprobs(outputs: list[list[TokenOutput]]) -> list[float]:
    return [row.logprob for sequence in outputs for output in sequence for row in output.logprobs]
