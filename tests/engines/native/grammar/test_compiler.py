"""The grammar library behind its one door: what is compiled, what is refused and in which words, what masks allow."""

from __future__ import annotations

import json
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.api import Grammar, JsonObject, JsonSchema, OneOf, Regex, StructuredOutput
from engines.native.grammar.compiler import GrammarCompiler, GrammarConstraint
from engines.native.grammar.constraint import Choosing, GrammarError
from engines.native.grammar.spec import grammar_spec
from engines.native.tokenizer import Tokenizer
from engines.native.types import GrammarSpec
from tests.engines.native import small_tokenizers

PADDING = 37  # ids of the model that the tokenizer does not have


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = small_tokenizers.save(
        small_tokenizers.byte_level(),
        tmp_path_factory.mktemp("tokenizer"),
        tokenizer_config={"eos_token": "<|im_end|>"},
    )
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    end_of_text = tokenizer.token_id("<|endoftext|>")
    assert end_of_text is not None
    return GrammarCompiler(lambda: (tokenizer, frozenset({end_of_text})), tokenizer.vocab_size + PADDING)


def compile_(compiler: GrammarCompiler, form: Any) -> GrammarConstraint:
    return compiler.request(grammar_spec(StructuredOutput(form, "f"))).result(timeout=30)


def allowed(compiler: GrammarCompiler, constraint: GrammarConstraint, ends: frozenset[int]) -> set[int]:
    masks = compiler.masks([Choosing(5, constraint, ends)])
    assert masks.places == [5]
    bits = np.unpackbits(masks.bits.view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def accepts(compiler: GrammarCompiler, tokenizer: Tokenizer, form: Any, text: str) -> bool:
    """Token by token, each allowed by the mask before it, and an end allowed after the last."""
    constraint = compile_(compiler, form)
    ends = frozenset(compiler.eos_token_ids)
    progress = "open"
    for token in tokenizer.encode(text, add_special_tokens=False):
        if progress == "complete" or token not in allowed(compiler, constraint, ends):
            return False
        progress = constraint.advance(token)
    return progress == "complete" or bool(ends & allowed(compiler, constraint, ends))


PERSON = JsonSchema(
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        pytest.param(PERSON, '{"name": "Zoë 🎉", "age": 41}', '{"name": "Zoë", "age": -1}', id="schema"),
        pytest.param(JsonObject(), '{"a": [1, {"b": null}]}', "[1]", id="any object"),
        pytest.param(JsonSchema(True), "[1, 2]", "[1, 2", id="any value"),
        pytest.param(JsonSchema({"enum": ["x", 3]}), "3", "4", id="enum"),
        pytest.param(
            JsonSchema(
                {
                    "$defs": {"n": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/$defs/n"}}]}},
                    "$ref": "#/$defs/n",
                }
            ),
            "[[null, [[]]], null]",
            "[[1]]",
            id="recursive",
        ),
        pytest.param(Regex(r"[a-c]{2}/\d+"), "ab/12", "ad/12", id="regex"),
        pytest.param(OneOf(("yes", 'né"\n🎉')), 'né"\n🎉', "no", id="choice"),
        pytest.param(Grammar('root ::= "a" b*\nb ::= "b"'), "abb", "ba", id="GBNF"),
        pytest.param(Grammar('start: "a" b*\nb: "b"'), "abb", "ba", id="Lark"),
    ],
)
def test_a_form_accepts_its_texts_and_no_others(compiler, tokenizer, form, good, bad):
    assert accepts(compiler, tokenizer, form, good)
    assert not accepts(compiler, tokenizer, form, bad)
    assert not accepts(compiler, tokenizer, form, good + "x")


@pytest.mark.parametrize(
    ("form", "message"),
    [
        pytest.param(JsonSchema({"not": {}}), 'keyword "not" cannot be enforced', id="not"),
        pytest.param(
            JsonSchema({"properties": {"a": {"if": True, "then": False}}}), 'keywords "if", "then"', id="if and then"
        ),
        pytest.param(JsonSchema({"type": "array", "uniqueItems": True}), '"uniqueItems"', id="uniqueItems"),
        pytest.param(JsonSchema({"not": {}, "x-guidance": {"lenient": True}}), '"not"', id="not, leniently"),
        pytest.param(JsonSchema({"oneOf": [{"type": "integer"}, {"type": "number"}]}), '"oneOf"', id="oneOf"),
        pytest.param(JsonSchema({"$ref": "http://localhost/x"}), "http://localhost/x", id="far reference"),
        pytest.param(JsonSchema({"type": "string", "format": "nonsense"}), "nonsense", id="format"),
        pytest.param(JsonSchema({"type": "nothing"}), "nothing", id="type"),
        pytest.param(JsonSchema(False), "Unsatisfiable", id="false"),
        pytest.param(Regex("(a"), "unclosed group", id="regex"),
        pytest.param(Regex("a(?=b)"), "look-around", id="look-around"),
        pytest.param(Grammar("nonsense"), "neither GBNF nor Lark", id="grammar"),
        pytest.param(Grammar('start: "a" foo'), "foo", id="unknown rule"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(compiler, form, message):
    with pytest.raises(GrammarError) as caught:
        compile_(compiler, form)
    assert message in str(caught.value)
    assert len(str(caught.value)) <= 400


def test_deep_nesting_is_refused_and_harms_nothing(compiler):
    nested = '{"type":"array","items":' * 900 + "{}" + "}" * 900
    with pytest.raises(GrammarError, match="recursion"):
        compiler.request(GrammarSpec("json_schema", nested)).result(timeout=30)
    assert compile_(compiler, PERSON)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": False},
        {
            "oneOf": [
                {"type": "object", "properties": {"kind": {"const": kind}}, "required": ["kind"]} for kind in "ab"
            ],
            "discriminator": {"propertyName": "kind"},
        },
        {"type": "string", "title": "T", "description": "d", "examples": [1], "default": 2},
    ],
    ids=["uniqueItems false", "discriminator", "annotations"],
)
def test_keywords_that_ask_for_nothing_are_no_hindrance(compiler, schema):
    assert compile_(compiler, JsonSchema(schema))


def test_ids_without_a_token_and_special_tokens_are_never_allowed(compiler, tokenizer):
    anything = compile_(compiler, Regex(r"(.|\n)*"))
    tokens = allowed(compiler, anything, frozenset(compiler.eos_token_ids))
    assert max(tokens) < tokenizer.vocab_size
    assert tokens & tokenizer.special_ids == compiler.eos_token_ids
    assert len(tokens) > 300


def test_every_end_of_the_model_ends_a_complete_text_and_no_other(compiler, tokenizer):
    names = ("<|endoftext|>", "<|im_end|>")
    assert {tokenizer.token_id(name) for name in names} == compiler.eos_token_ids
    for end in compiler.eos_token_ids:
        constraint = compile_(compiler, Regex("a+"))
        everything = frozenset(compiler.eos_token_ids)
        assert not everything & allowed(compiler, constraint, everything)
        assert constraint.advance(tokenizer.encode("a", False)[0]) == "open"
        assert everything <= allowed(compiler, constraint, everything)
        assert allowed(compiler, constraint, frozenset({end})) & everything == {end}
        assert not allowed(compiler, constraint, frozenset()) & everything
        assert constraint.advance(end) == "complete"


def test_a_wrong_token_fails_and_says_so(compiler, tokenizer):
    constraint = compile_(compiler, Regex("a+"))
    assert constraint.advance(tokenizer.encode("b", False)[0]) == "failed"
    assert constraint.error


def test_white_space_between_json_tokens_ends(compiler, tokenizer):
    assert accepts(compiler, tokenizer, JsonObject(), '{\n  "a": 1\n}')
    assert not accepts(compiler, tokenizer, JsonObject(), "{" + " " * 21 + '"a":1}')


def test_equal_grammars_are_compiled_once_and_advance_apart(compiler, tokenizer):
    first, second = compile_(compiler, Regex("[xy][qz]")), compile_(compiler, Regex("[xy][qz]"))
    assert len([spec for spec in compiler._compiled if spec.text == "[xy][qz]"]) == 1
    x, y, q, z = (tokenizer.encode(char, False)[0] for char in "xyqz")
    first.advance(x)
    assert allowed(compiler, first, frozenset()) == {q, z}
    assert {x, y} <= allowed(compiler, second, frozenset())


def test_masks_of_many_equal_masks_of_each(tokenizer):
    compiler = GrammarCompiler(lambda: (tokenizer, frozenset()), tokenizer.vocab_size)
    forms = (PERSON, JsonObject(), Regex("a+"), OneOf(("x", "y")))
    constraints = [compile_(compiler, form) for form in forms * 3]
    for _ in range(12):  # some on the way there are texts that the form leaves no choice about
        together = compiler.masks([Choosing(i, one, frozenset()) for i, one in enumerate(constraints)]).bits.copy()
        for row, one in zip(together, constraints, strict=True):
            assert np.array_equal(row, compiler.masks([Choosing(0, one, frozenset())]).bits[0])
            token = int(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))[0])
            one.advance(token)


def test_a_tokenizer_that_cannot_be_constrained_refuses_every_grammar(tmp_path: Path):
    folder = small_tokenizers.save(small_tokenizers.word_piece(), tmp_path / "w")
    for load, message in (
        (lambda: (Tokenizer.load(folder), frozenset({1})), "no pieces of text"),
        (lambda: (Tokenizer.load(tmp_path / "none"), frozenset({1})), "cannot be loaded"),
    ):
        compiler = GrammarCompiler(load, 100)
        futures = [compiler.request(GrammarSpec("regex", text)) for text in "abc"]
        wait(futures, timeout=30)
        for future in futures:
            with pytest.raises(GrammarError, match=message):
                future.result()


def test_a_schema_reaches_the_core_with_its_values_and_names_unchanged():
    schema = {
        "const": {"uniqueItems": False},
        "enum": [{"discriminator": 1, "oneOf": []}],
        "properties": {"é": {}, "uniqueItems": False, "discriminator": {"uniqueItems": True}, "oneOf": {}},
    }
    sent = json.loads(grammar_spec(StructuredOutput(JsonSchema({**schema, "uniqueItems": False}), "f")).text)
    assert sent.pop("x-guidance")
    assert sent == schema
