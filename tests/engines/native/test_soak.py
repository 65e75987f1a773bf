"""Many mixed requests with aborts leave nothing behind, on CPU with a tiny model and on a GPU with a real shape."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.soak import BLOCK_SIZE, run_soak
from benchmarks.gpu.soak_requests import Request, problems
from config.engines import NativeSettings
from engines.native.build import build_core
from engines.native.types import FINISH_LENGTH, FINISH_STOP, AddSequence, LogprobRow, TokenOutput, TokenParams
from tests.engines.native.bench.tiny import FIELDS, tiny_model

QWEN3_0_6B = FIELDS | {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
}
TIGHT = {"load_format": "dummy", "max_num_seqs": 16, "kv_cache_memory": "80KiB", "max_model_len": 256}


@pytest.mark.parametrize("overlapped", [False, True], ids=["plain", "overlapped"])
def test_mixed_requests_with_aborts_leave_nothing_behind(overlapped: bool, tmp_path: Path):
    section = NativeSettings(model=str(tiny_model(tmp_path)), device="cpu", block_size=4, batch_invariant=True, **TIGHT)
    built = dataclasses.replace(build_core(section, lambda *_: None), overlapped=overlapped)
    figures, violations = run_soak(built, num_requests=250, seed=1, num_twins=40)
    assert violations == []
    assert figures["aborted"] > 5
    assert figures["stopped"] > 5
    assert figures["preemptions"] > 0
    assert figures["prefix_cache_hit_tokens"] > 0
    assert figures["repeated_alone"] == 40


def answered(params: TokenParams, *outputs: TokenOutput) -> list[str]:
    return problems(Request(AddSequence(0, (1, 2), params), outputs=list(outputs)), vocab_size=10)


@pytest.mark.parametrize(
    ("params", "output", "problem"),
    [
        (TokenParams(max_tokens=2), TokenOutput(0, (1, 2), FINISH_LENGTH), None),
        (TokenParams(max_tokens=2), TokenOutput(0, (1,), FINISH_LENGTH), "1 tokens instead of 2"),
        (TokenParams(max_tokens=2), TokenOutput(0, (1, 2)), "did not end"),
        (TokenParams(max_tokens=1), TokenOutput(0, (10,), FINISH_LENGTH), "beyond the vocabulary"),
        (TokenParams(max_tokens=3, stop_token_ids=(2,)), TokenOutput(0, (1, 2), FINISH_STOP), None),
        (TokenParams(max_tokens=3, stop_token_ids=(3,)), TokenOutput(0, (1, 2), FINISH_STOP), "stopped after 2"),
        (TokenParams(max_tokens=3, stop_token_ids=(1,)), TokenOutput(0, (1, 2, 3), FINISH_LENGTH), "went on after"),
        (TokenParams(max_tokens=1, logprobs=0), TokenOutput(0, (1,), FINISH_LENGTH), "of 0 tokens instead of 1"),
        (
            TokenParams(max_tokens=1, logprobs=1),
            TokenOutput(0, (1,), FINISH_LENGTH, (LogprobRow(1, -1.0),)),
            "another number of alternatives",
        ),
        (TokenParams(max_tokens=1, prompt_logprobs=0), TokenOutput(0, (1,), FINISH_LENGTH), "of 0 prompt tokens"),
    ],
)
def test_the_soak_sees_what_is_wrong(params: TokenParams, output: TokenOutput, problem: str | None):
    found = answered(params, output)
    assert (found == []) if problem is None else (len(found) == 1 and problem in found[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("batch_invariant", [False, True], ids=["default", "batch-invariant"])
def test_ten_thousand_requests_on_a_gpu(batch_invariant: bool, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_0_6B))
    section = NativeSettings(
        model=str(tmp_path),
        load_format="dummy",
        max_model_len=1024,
        max_num_seqs=128,
        kv_cache_memory="2GiB",
        block_size=BLOCK_SIZE,
        batch_invariant=batch_invariant,
    )
    built = build_core(section, lambda *_: None)
    num_requests, num_twins = (2_000, 100) if batch_invariant else (10_000, 0)
    figures, violations = run_soak(built, num_requests, seed=2, num_twins=num_twins)
    assert violations == [], figures
    assert figures["preemptions"] > 0
