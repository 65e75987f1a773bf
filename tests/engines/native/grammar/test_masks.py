"""Masks of a step: the same however the vocabulary is sliced, each row by its own rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.random_schemas import random_schema
from engines.api import Grammar, JsonObject, JsonSchema, OneOf, Regex, StructuredOutput
from engines.native.grammar import vocabulary
from engines.native.grammar.compiler import GrammarCompiler, GrammarConstraint
from engines.native.grammar.constraint import Choosing, Free, Limit, Matched, OneToken, Progress, Unended
from engines.native.grammar.spec import grammar_spec
from engines.native.tokenizer import Tokenizer
from engines.native.types import GrammarSpec
from tests.engines.native import small_tokenizers

FORMS: list[Any] = [
    JsonObject(),
    JsonSchema({"type": "string", "maxLength": 40}),
    JsonSchema({"type": "array", "items": {"type": "string", "minLength": 3, "maxLength": 7}, "minItems": 9}),
    JsonSchema({"type": "object", "additionalProperties": {"type": "string", "maxLength": 11}, "required": ["a\t"]}),
    JsonSchema({"type": "string", "pattern": "^[^x]{2,20}$"}),
    *(JsonSchema(random_schema(seed)) for seed in range(8)),
    Regex(r"[^\n]{1,9}|([a-z ]{4}\n)+"),
    OneOf(("no", 'né"\n🎉', "x" * 12)),
    Grammar('start: (WORD " ")+ "."\nWORD: /[^" ]{1,10}/'),
]


def spec(form: Any) -> GrammarSpec:
    return grammar_spec(StructuredOutput(form, "f"))


def loaded(tokenizer: Tokenizer, padding: int = 0) -> GrammarCompiler:
    """With its vocabulary read. What the small tokenizers do not name as an end, a special token is."""
    ends = tokenizer.eos_token_ids or frozenset({min(tokenizer.special_ids)})
    compiler = GrammarCompiler(lambda: (tokenizer, ends), tokenizer.vocab_size + padding)
    compiler.request(spec(Regex("a"))).result(timeout=60)
    return compiler


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(small_tokenizers.byte_level, id="byte level"),
        pytest.param(lambda: small_tokenizers.byte_fallback(strips_first_space=True), id="byte fallback"),
        pytest.param(small_tokenizers.metaspace, id="metaspace"),
        pytest.param(None, id="SmolLM2", marks=pytest.mark.network),
    ],
)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param is None:
        return Tokenizer.load(request.getfixturevalue("smollm2_gguf"))
    return Tokenizer.load(small_tokenizers.save(request.param(), tmp_path_factory.mktemp("tokenizer")))


def constrained(compiler: GrammarCompiler, form: Any, count: int = 1) -> list[GrammarConstraint]:
    constraints = [compiler.request(spec(form)).result(timeout=30) for _ in range(count)]
    return [constraint for constraint in constraints if isinstance(constraint, GrammarConstraint)]


def bits(compiler: GrammarCompiler, constraints: list[Any], ends: frozenset[int]) -> np.ndarray:
    return compiler.masks([Choosing(row, one, ends) for row, one in enumerate(constraints)]).bits.copy()


def ids(row: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))


def test_slices_change_no_bit(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    sliced = loaded(tokenizer)
    monkeypatch.setattr(vocabulary, "SLICES", [])
    whole = loaded(tokenizer)
    rng = np.random.default_rng(0)
    num_large = 0
    for form in FORMS:
        one, other = constrained(sliced, form)[0], constrained(whole, form)[0]
        for _ in range(40):
            mask, expected = bits(sliced, [one], sliced.eos_token_ids), bits(whole, [other], whole.eos_token_ids)
            assert np.array_equal(mask, expected), form
            allowed = ids(mask[0])
            num_large += len(allowed) > tokenizer.vocab_size // 2
            token = int(rng.choice(allowed))
            progress = one.advance(token)
            assert progress == other.advance(token)
            if progress == "complete":
                break
    assert num_large > 20, "the walks stay outside of strings, where slices are of use"


def test_no_more_than_the_grammars_used_last_are_kept(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("engines.native.grammar.compiler.MAX_GRAMMARS", 3)
    compiler = loaded(tokenizer)
    for text in "bcdbe":
        constrained(compiler, Regex(text))
    assert [kept.text for kept in compiler._compiled] == ["d", "b", "e"]


class Limited:
    """A constraint of one limit."""

    error = ""

    def __init__(self, limit: Limit) -> None:
        self._limit = limit

    def limit(self) -> Limit:
        return self._limit

    def advance(self, token_id: int) -> Progress:
        assert token_id >= 0
        return "open"


def test_each_row_has_its_own_rule_whatever_lay_in_its_memory_before(tokenizer: Tokenizer):
    compiler = loaded(tokenizer, padding=37)
    ends = compiler.eos_token_ids
    end = min(ends)
    letter = tokenizer.encode("a", False)[-1]
    started = constrained(compiler, Regex("a+"), 3)
    for constraint in started:
        assert constraint.advance(letter) == "open"
    unended, one = Limited(Unended()), Limited(OneToken(31))
    compiler.masks([Choosing(row, unended, ends) for row in range(8)])
    masks = compiler.masks(
        [
            Choosing(0, one, frozenset()),
            Choosing(2, started[0], ends),
            Choosing(3, Limited(Free()), ends),
            Choosing(5, started[1], frozenset()),
            Choosing(7, unended, ends),
            Choosing(8, Limited(Matched(started[2].matcher, also=3)), frozenset()),
        ]
    )
    assert masks.places == [0, 2, 5, 7, 8]
    single, may_end, may_not_end, everything, also = (set(ids(row).tolist()) for row in masks.bits)
    assert single == {31}
    assert end in may_end
    assert letter in may_end
    assert may_not_end == may_end - ends
    assert everything == set(range(tokenizer.vocab_size)) - ends
    assert also == may_not_end | {3}


def test_an_end_is_allowed_whatever_stop_tokens_say_where_nothing_else_is(tokenizer: Tokenizer):
    compiler = loaded(tokenizer)
    letter = tokenizer.encode("a", False)[-1]
    done, open_ = constrained(compiler, OneOf(("a", "b")))[0], constrained(compiler, Regex("a+"))[0]
    done.advance(letter)
    open_.advance(letter)
    over, on = bits(compiler, [done, open_], frozenset())
    assert set(ids(over).tolist()) == compiler.eos_token_ids
    assert not set(ids(on).tolist()) & compiler.eos_token_ids
