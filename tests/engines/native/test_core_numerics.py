"""The whole core, model included, against greedy generation by transformers: any blocks, chunks and preemption."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from config.engines import NativeSettings
from engines.native.build import BuiltCore, build_core
from engines.native.types import (
    GREEN_LIST,
    GREEN_LIST_SELF,
    GUMBEL,
    SYNTHID,
    AddSequence,
    TokenOutput,
    TokenParams,
    Watermark,
)
from engines.native.watermark.detect import detect

VOCAB = 320
NUM_TOKENS = 24


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory):
    """A random model whose logits are far enough apart for two float32 implementations to agree on the best token."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("tiny-llama")
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(5)
    shared = [rng.randrange(1, VOCAB) for _ in range(40)]
    alone = [[rng.randrange(1, VOCAB) for _ in range(rng.randint(1, 60))] for _ in range(6)]
    return alone + [shared + [rng.randrange(1, VOCAB) for _ in range(rng.randint(1, 20))] for _ in range(4)]


@pytest.fixture(scope="module")
def expected(reference, prompts) -> list[list[int]]:
    model = reference[1]
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_TOKENS, do_sample=False, pad_token_id=0
        )
        answers.append(output[0, len(prompt) :].tolist())
    return answers


def build(folder: Path, **settings: object) -> BuiltCore:
    return build_core(
        NativeSettings.model_validate({"model": str(folder), "device": "cpu", **settings}), lambda *_: None
    )


def generate(built: BuiltCore, prompts: list[list[int]], *, overlapped: bool = False, **params: object):
    """All prompts at once; the outputs of each, whole."""
    outputs: dict[int, list[TokenOutput]] = {i: [] for i in range(len(prompts))}
    settings = {"max_tokens": NUM_TOKENS, "temperature": 0.0, **params}
    for i, prompt in enumerate(prompts):
        built.core.add(b"test", AddSequence(i, tuple(prompt), TokenParams(**settings)))  # type: ignore[arg-type]
    step = built.core.step_overlapped if overlapped else built.core.step
    while built.core.has_work:
        for sequence, output in step():
            outputs[sequence.key[1]].append(output)
    assert built.core.stats().kv_blocks_used == 0
    return [outputs[i] for i in range(len(prompts))]


def tokens(outputs: list[list[TokenOutput]]) -> list[list[int]]:
    return [[token for output in sequence for token in output.token_ids] for sequence in outputs]


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"block_size": 1}, id="blocks-of-1"),
        pytest.param({"block_size": 7, "max_num_batched_tokens": 9, "max_num_seqs": 3}, id="odd-blocks-small-chunks"),
        pytest.param({"block_size": 64, "prefix_caching": False}, id="large-blocks-no-prefix-cache"),
        pytest.param(
            {"block_size": 4, "kv_cache_memory": "140KiB", "max_model_len": 100, "max_num_seqs": 8},
            id="preemption",
        ),
    ],
)
@pytest.mark.parametrize("overlapped", [False, True], ids=["plain", "overlapped"])
def test_greedy_tokens_equal_transformers(reference, prompts, expected, backend, settings, overlapped):
    built = build(reference[0], dtype="float32", attention_backend=backend, **settings)
    assert tokens(generate(built, prompts, overlapped=overlapped)) == expected
    if "kv_cache_memory" in settings:
        assert built.core.stats().preemptions > 0
    again = generate(built, prompts, overlapped=overlapped)  # now mostly from the prefix cache
    assert tokens(again) == expected
    hits = sum(output.cached_tokens for sequence in again for output in sequence[:1])
    assert (hits > 0) == settings.get("prefix_caching", True)


def test_logprobs_of_prompt_and_output_equal_transformers(reference, prompts):
    built = build(reference[0], dtype="float32", max_num_batched_tokens=16, max_num_seqs=4)
    outputs = generate(built, prompts, logprobs=3, prompt_logprobs=2)
    for prompt, sequence in zip(prompts, outputs, strict=True):
        all_tokens = prompt + tokens([sequence])[0]
        with torch.no_grad():
            truth = reference[1](torch.tensor([all_tokens])).logits[0].log_softmax(-1)
        first, *rest = sequence[0].prompt_logprobs
        rows = [*rest, *(row for output in sequence for row in output.logprobs)]
        assert first is None
        assert len(rows) == len(all_tokens) - 1
        for position, row in enumerate(rows):
            top = truth[position].topk(2)
            assert row.token_id == all_tokens[position + 1]
            assert row.logprob == pytest.approx(truth[position, row.token_id].item(), abs=1e-4)
            assert row.top_logprobs[:2] == pytest.approx(top.values.tolist(), abs=1e-4)
            assert list(row.top_ids[:2]) == top.indices.tolist()


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_a_seeded_request_gets_the_same_tokens_alone_and_under_load(reference, prompts, dtype):
    built = build(reference[0], dtype=dtype, max_num_batched_tokens=24, max_num_seqs=6)
    params = {"temperature": 0.9, "top_p": 0.95, "top_k": 40, "seed": 11}
    together = tokens(generate(built, prompts, **params))
    alone = [tokens(generate(built, [prompt], **params))[0] for prompt in prompts]
    assert together == alone
    assert tokens(generate(built, prompts, **{**params, "seed": 12})) != together


@pytest.mark.parametrize(
    "mark",
    [
        Watermark(GREEN_LIST, 9, 1, threshold=2**31, delta=3.0),
        Watermark(GREEN_LIST_SELF, 9, 3, threshold=2**31, delta=3.0),
        Watermark(GUMBEL, 9, 2),
        Watermark(SYNTHID, 9, 2, depth=30),
    ],
    ids=["green-list", "self-hash", "gumbel", "synthid"],
)
def test_marks_are_the_same_overlapped_preempted_in_chunks_and_after_prefix_hits(reference, prompts, mark):
    params = {"temperature": 1.5, "seed": 4, "watermark": mark, "max_tokens": 40}
    plain = build(reference[0], dtype="float32", prefix_caching=False)
    expected = tokens(generate(plain, prompts, **params))
    small = {"block_size": 4, "kv_cache_memory": "180KiB", "max_model_len": 120, "max_num_batched_tokens": 9}
    built = build(reference[0], dtype="float32", max_num_seqs=8, **small)
    for overlapped in (True, False):  # the second time mostly from the prefix cache
        assert tokens(generate(built, prompts, overlapped=overlapped, **params)) == expected
    assert built.core.stats().preemptions > 0
    assert sum(detect(answer, mark).z_score for answer in expected) / len(prompts) ** 0.5 > 5
    plain_z = [
        detect(answer, mark).z_score for answer in tokens(generate(plain, prompts, **{**params, "watermark": None}))
    ]
    assert abs(sum(plain_z)) / len(prompts) ** 0.5 < 4


def test_penalties_bias_and_bans_reach_the_model(reference, prompts, expected):
    built = build(reference[0], dtype="float32")
    first = expected[0][0]
    banned = tokens(generate(built, prompts[:1], logit_bias=((first, -100.0),)))[0]
    assert first not in banned
    assert tokens(generate(built, prompts[:1], bad_words=((first,),)))[0] == banned
    once = tokens(generate(built, prompts[:1], presence_penalty=100.0))[0]
    assert len(set(once)) == len(once)


def test_stop_tokens_end_a_sequence_and_min_tokens_hold_them_back(reference, prompts, expected):
    built = build(reference[0], dtype="float32")
    stop = expected[1][4]
    stopped = tokens(generate(built, prompts[1:2], stop_token_ids=(stop,)))[0]
    assert stopped == expected[1][: expected[1].index(stop) + 1]
    held = tokens(generate(built, prompts[1:2], stop_token_ids=(stop,), min_tokens=10))[0]
    assert stop not in held[:10]


def test_a_context_that_the_cache_cannot_hold_is_refused_by_both_numbers(reference):
    from engines.errors import EngineUnavailable

    with pytest.raises(EngineUnavailable, match=r"max_model_len is 200 tokens.*holds 128:.*kv_cache_memory"):
        build(reference[0], dtype="float32", kv_cache_memory="64KiB", max_model_len=200)


def test_batch_invariance_is_to_be_had_from_numba_and_not_from_torch(reference, prompts, expected):
    from engines.errors import EngineUnavailable

    built = build(reference[0], dtype="float32", batch_invariant=True)
    assert tokens(generate(built, prompts[:2])) == expected[:2]
    with pytest.raises(EngineUnavailable, match="batch_invariant is not to be had with attention_backend 'torch'"):
        build(reference[0], attention_backend="torch", batch_invariant=True)
