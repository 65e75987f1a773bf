"""What a model writes under a schema validates, whatever the model: here a random one, at its noisiest.

The benchmark (benchmarks/structured_output.py) does the same with a thousand of these schemas and a real model.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from benchmarks.random_schemas import random_schema
from config.engines import NativeSettings
from engines.api import JsonSchema, Regex, StructuredOutput
from engines.native.build import BuiltCore, build_core
from engines.native.grammar.spec import grammar_spec
from engines.native.tokenizer import Tokenizer
from engines.native.types import FINISH_COMPLETE, FINISH_LENGTH, FINISH_STOP, AddSequence, GrammarSpec, TokenParams
from tests.engines.native import small_tokenizers

NUM_SCHEMAS = 60
MAX_TOKENS = 450


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("random-llama")
    small_tokenizers.save(
        small_tokenizers.byte_level(), folder, tokenizer_config={"eos_token": "<|im_end|>", "bos_token": None}
    )
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=450,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        eos_token_id=None,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


def build(folder: Path, **settings: Any) -> BuiltCore:
    section = {"model": str(folder), "device": "cpu", "dtype": "float32", "max_num_seqs": 16, **settings}
    return build_core(NativeSettings.model_validate(section), lambda *_: None)


def generate(
    built: BuiltCore,
    tokenizer: Tokenizer,
    grammars: list[GrammarSpec | None],
    *,
    overlapped: bool = False,
    prompt: str = "the quick brown fox",
    **params: Any,
) -> list[tuple[str, int]]:
    """Text and finish of one sequence per grammar, all at once."""
    tokens: list[list[int]] = [[] for _ in grammars]
    finish = [0] * len(grammars)
    prompt_ids = tuple(tokenizer.encode(prompt, False))
    for i, grammar in enumerate(grammars):
        settings = {"max_tokens": MAX_TOKENS, "seed": i, "stop_token_ids": tuple(tokenizer.eos_token_ids), **params}
        built.core.add(b"t", AddSequence(i, prompt_ids, TokenParams(**settings), grammar=grammar))
    step = built.core.step_overlapped if overlapped else built.core.step
    while built.core.has_work or built.core.is_compiling:
        for sequence, output in step():
            assert output.error == ""
            tokens[sequence.key[1]] += output.token_ids
            finish[sequence.key[1]] = output.finish
    assert built.core.stats().kv_blocks_used == 0
    return [(tokenizer.decode(ids), end) for ids, end in zip(tokens, finish, strict=True)]


def test_answers_under_random_schemas_validate(folder: Path, tokenizer: Tokenizer):
    schemas = [random_schema(seed) for seed in range(NUM_SCHEMAS)]
    specs: list[GrammarSpec | None] = [grammar_spec(StructuredOutput(JsonSchema(schema), "f")) for schema in schemas]
    answers = generate(build(folder, max_num_batched_tokens=40), tokenizer, specs)
    finished = 0
    for schema, (text, finish) in zip(schemas, answers, strict=True):
        if finish == FINISH_LENGTH:  # a random model may write digits until its tokens end
            continue
        assert finish in (FINISH_COMPLETE, FINISH_STOP)
        jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)
        finished += 1
    assert finished > 0.8 * NUM_SCHEMAS


@pytest.mark.parametrize(
    "params",
    [
        pytest.param({"temperature": 0.0}, id="greedy"),
        pytest.param({"top_p": 0.5, "top_k": 5}, id="filters"),
        pytest.param({"logprobs": 3, "frequency_penalty": 0.5}, id="logprobs"),
        pytest.param({"min_tokens": 30}, id="min_tokens"),
        pytest.param({"stop_token_ids": ()}, id="ignore_eos"),
    ],
)
def test_a_mixed_batch_keeps_forms_in_any_order_of_steps(folder: Path, tokenizer: Tokenizer, params: dict[str, Any]):
    patterns = [r"[0-9]{3,9}", r"(ab|cd)+", r"[^a-z]{5}\n", r"x"]
    specs = [None if i % 3 == 0 else GrammarSpec("regex", patterns[i % 4]) for i in range(20)]
    small = {"block_size": 4, "kv_cache_memory": "24KiB", "max_model_len": 60, "max_num_batched_tokens": 24}
    params = {"max_tokens": 30, "temperature": 1.0, **params}
    answers = None
    for overlapped in (False, True):
        built = build(folder, **small)
        again = generate(built, tokenizer, specs, overlapped=overlapped, **params)
        assert built.core.stats().preemptions > 0
        assert answers is None or again == answers
        answers = again
    assert answers is not None
    for i, (text, finish) in enumerate(answers):
        if specs[i] is not None and finish != FINISH_LENGTH:
            assert re.fullmatch(patterns[i % 4], text), text


def test_rows_without_a_grammar_are_sampled_as_if_alone(folder: Path, tokenizer: Tokenizer):
    params: dict[str, Any] = {"max_tokens": 20, "top_p": 0.9}
    free = generate(build(folder), tokenizer, [None] * 6, **params)
    mixed = generate(build(folder), tokenizer, [None, GrammarSpec("regex", "[ab]{9}")] * 3, **params)
    assert mixed[::2] == free[::2]


def test_a_form_that_takes_all_tokens_says_so(folder: Path, tokenizer: Tokenizer):
    spec = grammar_spec(StructuredOutput(Regex("[a-z]{50}"), "f"))
    ((text, finish),) = generate(build(folder), tokenizer, [spec], max_tokens=10)
    assert finish == FINISH_LENGTH
    assert re.fullmatch("[a-z]{10,49}", text)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("overlapped", [False, True], ids=["plain", "overlapped"])
def test_forms_hold_in_replayed_graphs(folder: Path, tokenizer: Tokenizer, overlapped: bool):
    """Greedy and filtered rows are sampled by the graph, rows with penalties beside it; chunks have graphs, too."""
    built = build(folder, device="cuda", dtype="auto", max_num_batched_tokens=64)
    specs = [None if i % 3 == 0 else GrammarSpec("regex", "[0-9]{3,9}(ab|cd)+") for i in range(30)]
    for params in ({"temperature": 0.0}, {"top_p": 0.9}, {"frequency_penalty": 0.5, "logprobs": 2}):
        answers = generate(built, tokenizer, specs, overlapped=overlapped, max_tokens=60, **params)
        for spec, (text, finish) in zip(specs, answers, strict=True):
            if spec is not None and finish != FINISH_LENGTH:
                assert re.fullmatch("[0-9]{3,9}(ab|cd)+", text), text
            elif spec is not None:
                assert re.fullmatch("[0-9]{3,9}[abcd]*", text), text
