"""A model on two GPUs gives the tokens that it gives on one: NCCL, symmetric memory, graphs, float32."""

from __future__ import annotations

import pytest
import torch

from tests.engines.native.distributed.test_tensor_parallel import PARAMS, SIZES, engine, generate, tokens

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("qwen3")
    sizes = {**SIZES, "hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    Qwen3ForCausalLM(Qwen3Config(**sizes, tie_word_embeddings=False)).save_pretrained(folder)
    return folder


def test_two_gpus_give_the_tokens_of_one(checkpoint):
    settings = {"device": "cuda", "kv_cache_memory": "64MiB", "max_model_len": 256}
    with engine(checkpoint, 1, **settings) as built:
        expected = {name: generate(built, PARAMS[name]) for name in PARAMS}
    with engine(checkpoint, 2, **settings) as built:
        for name, truth in expected.items():
            for overlapped in (False, True):
                outputs = generate(built, PARAMS[name], overlapped=overlapped)
                assert tokens(outputs) == tokens(truth), (name, overlapped)
                got, wanted = ([row.logprob for s in of for o in s for row in o.logprobs] for of in (outputs, truth))
                assert got == pytest.approx(wanted, abs=1e-3)
