"""What graphs of decodes and of prefill chunks compute, padding included, without a GPU: replayed by running anew."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch

from config.engines import NativeSettings
from engines.native.build import build_core
from engines.native.chunk_graphs import DECODES, ChunkGraphs
from engines.native.cuda_graphs import DecodeGraphs, GraphContext, StepGraph, graph_sizes
from engines.native.model_runner import ModelRunner
from engines.native.types import AddSequence, BatchPlan, TokenParams

VOCAB, MAX_SEQS, MAX_TOKENS = 200, 24, 160


@dataclass
class Rerun:
    """A graph that computes when it is replayed, into the outputs of the first time."""

    compute: object

    def replay(self):
        self.compute()


class RerunContext(GraphContext):
    """Where there are no CUDA graphs: the same functions over the same static tensors."""

    def capture(self, inputs, forward, sample):
        def sample_anything_for_padding(inputs, logits):
            token_ids = sample(inputs, logits, filtered=True)
            used = self.rows.token_table[-1]
            used[used.nonzero()] = -1  # what was stored for padding: no kernel promises a token id there
            return token_ids

        return self._capture(inputs, forward, sample_anything_for_padding)

    def _capture(self, inputs, forward, sample):
        logits = forward(inputs)
        token_ids = sample(inputs, logits)
        return StepGraph(
            inputs,
            Rerun(lambda: logits.copy_(forward(inputs))),
            Rerun(lambda: token_ids.copy_(sample(inputs, logits))),
            token_ids,
            logits,
            filtered=None,
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    path = tmp_path_factory.mktemp("tiny-qwen3")
    Qwen3ForCausalLM(config).save_pretrained(path)
    return path


def build(folder, monkeypatch=None):
    section = NativeSettings(
        model=str(folder), device="cpu", dtype="float32", attention_backend="torch", block_size=4,
        max_num_seqs=MAX_SEQS, max_num_batched_tokens=MAX_TOKENS, kv_cache_memory="8MiB", max_model_len=200,
    )  # fmt: skip
    built = build_core(section, lambda *_: None)
    if monkeypatch is None:
        return built, None
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    plain = built.core._runner
    context = RerunContext(
        plain._model, plain._cache, plain._rows, plain._sampler.state, plain._sampler.ops, pool=(0, 0)
    )
    decodes, chunks = DecodeGraphs(context), ChunkGraphs(context)
    decodes.capture(graph_sizes(MAX_SEQS)[::5])
    monkeypatch.setattr(ChunkGraphs, "_measure", lambda *_: (0.001, 1.0))  # as if launching were slow: always replay
    chunks.capture(MAX_SEQS, MAX_TOKENS)
    built.core._runner = ModelRunner(plain._model, plain._cache, plain._rows, plain._sampler, decodes, chunks)
    return built, chunks


def answers(built, requests):
    tokens = {i: [] for i in range(len(requests))}
    logprobs = {i: [] for i in range(len(requests))}
    waiting = list(enumerate(requests))
    rng = random.Random(0)
    while waiting or built.core.has_work:
        count = rng.choice((0, 0, 1, 2))  # a few now and then, so that chunks and decodes meet
        for i, (prompt, params) in waiting[:count]:
            built.core.add(b"c", AddSequence(i, tuple(prompt), params))
        waiting = waiting[count:]
        for sequence, output in built.core.step_overlapped():
            tokens[sequence.key[1]] += output.token_ids
            logprobs[sequence.key[1]] += [row.logprob for row in output.logprobs]
    assert built.core.stats().kv_blocks_used == 0
    return tokens, logprobs


def requests(seed: int):
    rng = random.Random(seed)
    kinds = [
        {"temperature": 0.0},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.0, "repetition_penalty": 1.3, "logprobs": 2},
        {"temperature": 0.0, "prompt_logprobs": 1},
    ]
    weights = [6, 4, 4, 1, 1]
    return [
        (
            [rng.randrange(VOCAB) for _ in range(rng.choice((1, 2, 7, 40, 90, 130)))],
            TokenParams(max_tokens=rng.randint(1, 12), seed=i, **rng.choices(kinds, weights)[0]),
        )
        for i in range(40)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_steps_through_graphs_give_what_steps_without_give(folder, monkeypatch, seed):
    wanted = answers(build(folder)[0], requests(seed))
    built, chunks = build(folder, monkeypatch)
    replayed = []
    replay = chunks.replay
    monkeypatch.setattr(
        chunks, "replay", lambda plan, places: (replayed.append((plan, places)), replay(plan, places))[1]
    )
    tokens, logprobs = answers(built, requests(seed))
    assert tokens == wanted[0]
    for i, expected in wanted[1].items():
        assert logprobs[i] == pytest.approx(expected, abs=1e-2)
    assert any(plan.num_decodes and len(plan.rows) > plan.num_decodes for plan, _ in replayed)
    assert len({places for _, places in replayed}) > 1


def plan_of(num_decodes: int, *chunks: int) -> BatchPlan:
    return BatchPlan(
        rows=list(range(num_decodes + len(chunks))),
        num_tokens=[1] * num_decodes + list(chunks),
        num_decodes=num_decodes,
    )


def test_a_graph_is_found_where_its_places_suffice(folder, monkeypatch):
    chunks = build(folder, monkeypatch)[1]
    assert list(chunks.sizes.totals) == [64, 128]
    assert list(chunks.sizes.decodes) == [*DECODES[:2], MAX_SEQS]
    assert chunks.find(plan_of(0, 64)) == (0, 64)
    assert chunks.find(plan_of(1, 45)) == (16, 48)
    assert chunks.find(plan_of(1, 60, 5)) == (16, 112)
    assert chunks.find(plan_of(17, 60)) == (24, 104)
    assert chunks.find(plan_of(0, 1, 1, 1)) == (0, 128)  # three sequences need more places than 64 tokens bring
    assert chunks.find(plan_of(0, 1, 1, 1, 1, 1)) is None
    assert chunks.find(plan_of(0, 129)) is None
    assert chunks.find(plan_of(17, 105)) is None
    assert chunks.find(plan_of(25, 20)) is None


def test_padding_that_costs_more_than_launching_is_avoided(folder, monkeypatch):
    chunks = build(folder, monkeypatch)[1]
    monkeypatch.setattr(chunks, "_launch_s", 0.010)
    monkeypatch.setattr(chunks, "_seconds", [0.004, 0.012])
    assert chunks.find(plan_of(0, 30)) == (0, 64)
    assert chunks.find(plan_of(0, 128)) == (0, 128)  # nothing to pad
    assert chunks.find(plan_of(0, 100)) is None  # 12 ms with padding, 10 ms without
    assert chunks.find(plan_of(0, 110)) == (0, 128)  # hardly any, and a launch is not hidden entirely


@pytest.mark.parametrize(("seconds", "totals"), [(0.012, [64, 128]), (0.021, [64])])
def test_steps_are_captured_until_launching_is_hidden_well(folder, monkeypatch, seconds: float, totals: list[int]):
    chunks = build(folder, monkeypatch)[1]
    again = ChunkGraphs(chunks._context)
    monkeypatch.setattr(ChunkGraphs, "_measure", lambda *_: (seconds, 0.010))
    again.capture(MAX_SEQS, MAX_TOKENS)
    assert list(again.sizes.totals) == totals


def test_chunks_are_cut_to_the_largest_graph_where_no_launch_is_faster(folder, monkeypatch):
    chunks = build(folder, monkeypatch)[1]
    assert chunks.largest_chunk == 128
    monkeypatch.setattr(chunks, "_launch_s", 0.0005)
    assert chunks.largest_chunk is None
