"""The CUDA path of the native core against transformers in float32, on one GPU."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from config.engines import NativeSettings
from engines.native.build import build_core
from engines.native.types import (
    GREEN_LIST,
    GREEN_LIST_SELF,
    GUMBEL,
    LAST_TOKEN,
    MEAN_TOKENS,
    SYNTHID,
    AddSequence,
    Pooling,
    TokenParams,
    Watermark,
)
from engines.native.watermark.detect import detect

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

WORSE_THAN_TRANSFORMERS = 1.5  # our bfloat16 error over that of transformers' own bfloat16, both against float32


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=2048,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)  # logits that differ enough for bfloat16 to keep their order
    folder = tmp_path_factory.mktemp("tiny-qwen3")
    model.save_pretrained(folder)
    # Loaded anew: .to(bfloat16) has rounded the rotary frequencies too, which are no weights.
    return folder, Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def built(tiny_model):
    section = NativeSettings(model=str(tiny_model[0]), max_num_seqs=40, max_num_batched_tokens=256)
    return build_core(section, lambda *_: None)


def generate(built, prompts, step, **params):
    outputs = {i: [] for i in range(len(prompts))}
    logprobs = {i: [] for i in range(len(prompts))}
    scores = {}
    for i, prompt in enumerate(prompts):
        built.core.add(b"t", AddSequence(i, tuple(prompt), TokenParams(**params)))
    while built.core.has_work:
        for sequence, output in step():
            seq_id = sequence.key[1]
            outputs[seq_id] += output.token_ids
            logprobs[seq_id] += output.logprobs
            scores.setdefault(seq_id, output.prompt_logprobs)
    assert built.core.stats().kv_blocks_used == 0
    return outputs, logprobs, scores


def random_prompts(count, longest, seed=0):
    rng = random.Random(seed)
    return [[rng.randrange(2048) for _ in range(rng.randint(1, longest))] for _ in range(count)]


@torch.no_grad()
def reference_logprobs(model, tokens):
    ids = torch.tensor([tokens], device=model.device)
    return model(ids).logits[0].float().log_softmax(-1).cpu()


@pytest.fixture(scope="module")
def references(tiny_model):
    """transformers in float32, which is the truth, and in bfloat16, whose error is the measure of ours."""
    from transformers import Qwen3ForCausalLM

    rounded = Qwen3ForCausalLM.from_pretrained(tiny_model[0], dtype=torch.bfloat16).cuda().eval()
    return tiny_model[1], rounded


def test_prompt_and_token_logprobs_are_as_near_to_float32_as_transformers_in_bfloat16(built, references):
    prompts = random_prompts(12, 600)
    outputs, logprobs, scores = generate(
        built, prompts, built.core.step, max_tokens=8, temperature=0.0, logprobs=0, prompt_logprobs=0
    )
    our_errors, their_errors = [], []
    for i, prompt in enumerate(prompts):
        tokens = prompt + outputs[i]
        at = torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])
        truth, rounded = (reference_logprobs(model, tokens)[at] for model in references)
        ours = torch.tensor([row.logprob for row in scores[i][1:]] + [row.logprob for row in logprobs[i]])
        our_errors.append(ours - truth)
        their_errors.append(rounded - truth)
    ours, theirs = torch.cat(our_errors), torch.cat(their_errors)
    assert ours.square().mean().sqrt() < WORSE_THAN_TRANSFORMERS * theirs.square().mean().sqrt()


@pytest.mark.parametrize("overlapped", [False, True], ids=["plain", "overlapped"])
def test_every_greedy_token_is_the_best_of_float32_within_bfloat16(built, references, overlapped):
    prompts = random_prompts(30, 300, seed=1)
    step = built.core.step_overlapped if overlapped else built.core.step
    outputs, _, _ = generate(built, prompts, step, max_tokens=40, temperature=0.0)
    losses, allowed = [], []
    for i, prompt in enumerate(prompts):
        truth, rounded = (reference_logprobs(model, prompt + outputs[i])[len(prompt) - 1 : -1] for model in references)
        best = truth.max(1).values
        losses.append(best - truth.gather(1, torch.tensor(outputs[i])[:, None])[:, 0])
        allowed.append(best - truth.gather(1, rounded.argmax(1)[:, None])[:, 0])
    assert torch.cat(losses).mean() < WORSE_THAN_TRANSFORMERS * torch.cat(allowed).mean() + 1e-4


@pytest.mark.parametrize("task", ["generate", "embed"])
@pytest.mark.parametrize("mode", [LAST_TOKEN, MEAN_TOKENS])
def test_vectors_are_as_near_to_float32_as_transformers_in_bfloat16(tiny_model, built, references, task, mode):
    if task == "embed":  # without head and graphs; else beside sequences that generate through graphs
        section = NativeSettings(model=str(tiny_model[0]), task="embed", max_num_seqs=40, max_num_batched_tokens=256)
        built = build_core(section, lambda *_: None)
    prompts = random_prompts(12, 600, seed=3)
    for i, prompt in enumerate(prompts):
        params = TokenParams(max_tokens=0, pooling=Pooling(mode))
        built.core.add(b"t", AddSequence(i, tuple(prompt), params))
        if task == "generate":
            built.core.add(b"u", AddSequence(i, tuple(prompt), TokenParams(max_tokens=30, temperature=0.0)))
    vectors = {}
    while built.core.has_work:
        vectors |= {output.seq_id: output.embedding for _, output in built.core.step_overlapped() if output.embedding}
    assert built.core.stats().kv_blocks_used == 0
    our_errors, their_errors = [], []
    for i, prompt in enumerate(prompts):
        truth, rounded = (_vector(model, prompt, mode) for model in references)
        our_errors.append(torch.frombuffer(bytearray(vectors[i]), dtype=torch.float32) - truth)
        their_errors.append(rounded - truth)
    ours, theirs = torch.cat(our_errors), torch.cat(their_errors)
    assert ours.square().mean().sqrt() < WORSE_THAN_TRANSFORMERS * theirs.square().mean().sqrt()


@torch.no_grad()
def _vector(model, prompt, mode):
    states = model.model(torch.tensor([prompt], device=model.device)).last_hidden_state[0].float().cpu()
    pooled = states[-1] if mode == LAST_TOKEN else states.mean(0)
    return pooled / pooled.norm()


def test_overlap_and_graphs_sample_what_plain_steps_sample(built):
    prompts = random_prompts(5, 50, seed=2)
    params = {"max_tokens": 30, "temperature": 0.8, "top_p": 0.9, "top_k": 50, "seed": 7}
    plain, _, _ = generate(built, prompts, built.core.step, **params)
    overlapped, _, _ = generate(built, prompts, built.core.step_overlapped, **params)
    assert plain == overlapped


@pytest.mark.parametrize(
    "mark",
    [
        Watermark(GREEN_LIST, 9, 1, threshold=2**31, delta=3.0),
        Watermark(GREEN_LIST_SELF, 9, 4, threshold=2**31, delta=3.0),
        Watermark(GUMBEL, 9, 4),
        Watermark(SYNTHID, 9, 4, depth=30),
    ],
    ids=["green-list", "self-hash", "gumbel", "synthid"],
)
@pytest.mark.parametrize("top_k", [0, 50])
def test_marks_are_the_same_under_overlap_and_graphs_and_are_found(built, mark, top_k):
    prompts = random_prompts(12, 50, seed=4)
    params = {"max_tokens": 60, "temperature": 1.0, "top_k": top_k, "seed": 7, "watermark": mark}
    plain, _, _ = generate(built, prompts, built.core.step, **params)
    overlapped, _, _ = generate(built, prompts, built.core.step_overlapped, **params)
    assert plain == overlapped
    assert sum(detect(answer, mark).z_score for answer in plain.values()) / len(prompts) ** 0.5 > 5


def test_penalties_and_logprobs_beside_graphs_change_only_their_own_row(built):
    prompts = random_prompts(3, 50, seed=3)
    params = {"max_tokens": 20, "temperature": 0.0}
    plain, _, _ = generate(built, prompts, built.core.step_overlapped, **params)
    with_logprobs, logprobs, _ = generate(built, prompts, built.core.step_overlapped, logprobs=3, **params)
    assert plain == with_logprobs
    assert all(len(row.top_ids) == 3 for rows in logprobs.values() for row in rows)


# --- a real model against the CPU's float32 ---------------------------------------------------------------------------

REAL_PROMPTS = (
    "Once upon a time, in a small mill by the river,",
    "The capital of France is",
    "def fibonacci(n):\n",
    "Water flows downhill because",
    "1, 2, 3, 4, 5, 6,",
)
LOGPROB_RMS = 0.1  # of bfloat16 activations against float32: root mean square over prompt tokens, in nats
LOGPROB_WORST = 0.5
NEAR_TIE = 0.25  # nats: where the two best tokens are this close in float32, bfloat16 may take the other


def test_a_real_model_on_the_gpu_is_that_of_float32_on_the_cpu(smollm2_gguf: Path):
    """SmolLM2-135M: log-probabilities within the tolerances above, greedy tokens equal up to near ties."""
    from engines.native.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(smollm2_gguf)
    prompts = [tokenizer.encode(text) for text in REAL_PROMPTS]
    exact = build_core(NativeSettings(model=str(smollm2_gguf), device="cpu", dtype="float32"), lambda *_: None)
    rounded = build_core(NativeSettings(model=str(smollm2_gguf), device="cuda", dtype="bfloat16"), lambda *_: None)
    truth, _, true_scores = generate(exact, prompts, exact.core.step, max_tokens=48, temperature=0.0, prompt_logprobs=0)
    ours, _, scores = generate(
        rounded, prompts, rounded.core.step_overlapped, max_tokens=48, temperature=0.0, prompt_logprobs=0
    )
    errors = torch.tensor(
        [a.logprob - b.logprob for i in truth for a, b in zip(scores[i][1:], true_scores[i][1:], strict=True)]
    )
    assert errors.square().mean().sqrt() < LOGPROB_RMS
    assert errors.abs().max() < LOGPROB_WORST
    for i, prompt in enumerate(prompts):
        known = prompt + ours[i]
        _, _, judged = generate(exact, [known], exact.core.step, max_tokens=1, temperature=0.0, prompt_logprobs=1)
        for row in judged[0][len(prompt) :]:
            assert row.logprob > row.top_logprobs[0] - NEAR_TIE, "not the best of float32, nor near it"


def test_a_chunk_that_samples_nothing_is_waited_for(built):
    built.core.add(b"t", AddSequence(0, tuple(range(700)), TokenParams(max_tokens=1)))
    plan = built.core._scheduler.schedule()
    assert not any(plan.samples)
    torch.cuda._sleep(200_000_000)  # clock cycles, a tenth of a second
    slept = torch.cuda.Event()
    slept.record()
    launched = built.runner.launch(plan)
    assert not slept.query()
    sampled = built.runner.collect(launched)
    assert slept.query()
    built.core._scheduler.commit(plan, sampled)
    while built.core.has_work:
        built.core.step()


def test_float32_on_the_gpu_is_float32(tiny_model, references):
    built = build_core(NativeSettings(model=str(tiny_model[0]), dtype="float32", max_num_seqs=8), lambda *_: None)
    prompts = random_prompts(6, 300, seed=9)
    outputs, _, scores = generate(built, prompts, built.core.step, max_tokens=8, temperature=0.0, prompt_logprobs=0)
    for i, prompt in enumerate(prompts):
        tokens = prompt + outputs[i]
        truth = reference_logprobs(references[0], tokens)
        ours = torch.tensor([row.logprob for row in scores[i][1:]])
        expected = truth[torch.arange(len(prompt) - 1), torch.tensor(prompt[1:])]
        torch.testing.assert_close(ours, expected, atol=2e-3, rtol=0)
