"""With `batch_invariant` a request's tokens are the same alone and in any company, whatever becomes of it on the way.

What holds without it: on CPU the same, but for sequences that were preempted, or whose generated tokens come back as a
prompt; on GPU nothing to the bit, since kernels are chosen by the number of tokens (test_cuda_path.py says how near).
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from config.engines import NativeSettings
from engines.native.build import BuiltCore, build_core
from engines.native.types import AddSequence, TokenParams
from tests.engines.native.bench.tiny import tiny_model

PARAMS = {"max_tokens": 40, "temperature": 0.9, "top_p": 0.95, "seed": 5}
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")],
    ),
]


def random_prompts(count: int, longest: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(300) for _ in range(rng.randint(1, longest))] for _ in range(count)]


CROWD = random_prompts(12, 120, seed=7) + [list(range(70)) + prompt for prompt in random_prompts(5, 40, seed=8)]


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def build(model: Path, device: str, **settings: object) -> BuiltCore:
    common = {"load_format": "dummy", "batch_invariant": True, "block_size": 16, "max_num_seqs": 20, "device": device}
    section = {"model": str(model), "max_num_batched_tokens": 128, **common, **settings}
    return build_core(NativeSettings.model_validate(section), lambda *_: None)


def generate(built: BuiltCore, prompts: list[list[int]], *, overlapped: bool = False) -> list[list[int]]:
    tokens: dict[int, list[int]] = {i: [] for i in range(len(prompts))}
    for i, prompt in enumerate(prompts):
        built.core.add(b"t", AddSequence(i, tuple(prompt), TokenParams(**PARAMS)))  # type: ignore[arg-type]
    step = built.core.step_overlapped if overlapped else built.core.step
    while built.core.has_work:
        for sequence, output in step():
            tokens[sequence.key[1]] += output.token_ids
    return list(tokens.values())


@pytest.fixture(scope="module")
def alone(model: Path, device: str) -> list[list[int]]:
    """Each prompt by itself, nothing remembered, no step ahead: what every other way must give."""
    built = build(model, device, prefix_caching=False)
    return [generate(built, [prompt])[0] for prompt in CROWD]


@pytest.mark.parametrize("overlapped", [False, True], ids=["plain", "overlapped"])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="mixed-steps-and-graphs"),
        pytest.param({"max_num_batched_tokens": 23}, id="small-chunks"),
        pytest.param({"kv_cache_memory": "128KiB", "max_model_len": 200, "block_size": 4}, id="preemption"),
    ],
)
def test_a_crowd_gets_what_each_gets_alone(
    model: Path, device: str, alone: list[list[int]], settings: dict[str, object], overlapped: bool
):
    built = build(model, device, **settings)
    assert generate(built, CROWD, overlapped=overlapped) == alone
    assert (built.core.stats().preemptions > 0) == ("kv_cache_memory" in settings)
    assert generate(built, CROWD, overlapped=overlapped) == alone, "now from the prefix cache"
    assert built.core.stats().prefix_cache_hit_tokens > 0


def test_what_was_generated_continues_alike_as_a_prompt(model: Path, device: str, alone: list[list[int]]):
    """Half of an answer sent back, its keys and values from the cache (decoded) or computed again (as a prompt)."""
    for prefix_caching in (True, False):
        built = build(model, device, prefix_caching=prefix_caching)
        generate(built, CROWD)
        longer = [prompt + tokens[:20] for prompt, tokens in zip(CROWD, alone, strict=True)]
        assert [tokens[:20] for tokens in generate(built, longer)] == [tokens[20:] for tokens in alone]
