"""A grammar binds after reasoning, a budget ends reasoning, and both survive a prompt that opened it already."""

from __future__ import annotations

import numpy as np
import pytest

from engines.native.grammar.compiler import GrammarCompiler
from engines.native.grammar.constraint import Choosing
from engines.native.tokenizer import Tokenizer
from engines.native.types import GrammarSpec, ThinkingSpec
from tests.engines.native import small_tokenizers

GRAMMAR = GrammarSpec("regex", "[xy]{2}")


@pytest.fixture(scope="module", params=["<think>", "<reason>"], ids=["tags are tokens", "tags are text"])
def opening(request: pytest.FixtureRequest) -> str:
    """The small tokenizer has a token for <think>, and none for other tags."""
    return request.param


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    config = {"eos_token": "<|im_end|>"}
    return Tokenizer.load(small_tokenizers.save(small_tokenizers.byte_level(), folder, tokenizer_config=config))


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(lambda: (tokenizer, frozenset()), tokenizer.vocab_size)


class Answer:
    """One sequence under constraint: what may come, and what is said."""

    def __init__(self, compiler: GrammarCompiler, tokenizer: Tokenizer, opening: str, **thinking) -> None:
        self.compiler, self.tokenizer = compiler, tokenizer
        grammar = thinking.pop("grammar", GRAMMAR)
        settings = {"is_inside": False, "budget": -1, **thinking}
        spec = ThinkingSpec(opening, opening.replace("<", "</"), settings["is_inside"], settings["budget"])
        self.constraint = compiler.request(grammar, spec).result(timeout=30)
        self.progress = "open"

    def allowed(self) -> set[int] | None:
        """None: anything."""
        masks = self.compiler.masks([Choosing(3, self.constraint, self.compiler.eos_token_ids)])
        if not masks.places:
            return None
        assert masks.places == [3]
        return set(np.flatnonzero(np.unpackbits(masks.bits.view(np.uint8), bitorder="little")).tolist())

    def say(self, text: str) -> Answer:
        for token in self.tokenizer.encode(text, False):
            allowed = self.allowed()
            assert allowed is None or token in allowed, self.tokenizer.decode([token], False)
            self.progress = self.constraint.advance(token)
        return self

    def forced(self) -> str:
        """What is said while one token alone is allowed."""
        tokens = []
        while (allowed := self.allowed()) is not None and len(allowed) == 1:
            (token,) = allowed
            tokens.append(token)
            self.constraint.advance(token)
        return self.tokenizer.decode(tokens, False)

    @property
    def is_bound(self) -> bool:
        allowed = self.allowed()
        return allowed is not None and len(allowed) < 20


def ends(compiler: GrammarCompiler) -> frozenset[int]:
    return compiler.eos_token_ids


def test_a_grammar_waits_for_the_end_of_reasoning(compiler, tokenizer, opening):
    answer = Answer(compiler, tokenizer, opening, is_inside=True)
    answer.say("the cat, </ the hat\n")
    assert not answer.is_bound
    assert not answer.allowed() & ends(compiler), "an answer that never comes"
    answer.say(opening.replace("<", "</"))
    assert answer.is_bound
    assert answer.say("xy").progress == "complete"


def test_a_model_that_may_reason_either_opens_it_or_answers(compiler, tokenizer):
    assert Answer(compiler, tokenizer, "<think>").say("xy").progress == "complete"
    answer = Answer(compiler, tokenizer, "<think>").say("<think>the dog")
    assert not answer.is_bound
    assert answer.say("</think>xx").progress == "complete"


def test_where_the_opening_tag_is_no_token_the_grammar_binds_at_once(compiler, tokenizer):
    assert Answer(compiler, tokenizer, "<reason>").is_bound


@pytest.mark.parametrize("grammar", [None, GRAMMAR], ids=["free", "bound"])
def test_a_spent_budget_closes_reasoning(compiler, tokenizer, opening, grammar):
    answer = Answer(compiler, tokenizer, opening, is_inside=True, budget=3, grammar=grammar)
    for token in tokenizer.encode("quick brown fox jumps", False)[:3]:
        assert answer.forced() == ""
        answer.constraint.advance(token)
    assert answer.forced() == f"\n{opening.replace('<', '</')}\n\n"
    if grammar is None:
        assert answer.allowed() is None
    else:
        assert answer.say("yy").progress == "complete"


def test_no_budget_at_all_closes_reasoning_at_once(compiler, tokenizer, opening):
    answer = Answer(compiler, tokenizer, opening, is_inside=True, budget=0)
    assert answer.forced() == f"\n{opening.replace('<', '</')}\n\n"


def test_reasoning_that_ends_within_its_budget_is_left_alone(compiler, tokenizer, opening):
    answer = Answer(compiler, tokenizer, opening, budget=50, grammar=None)
    answer.say(f"{opening}the mat{opening.replace('<', '</')}")
    for _ in range(60):
        answer.say("a")
        assert answer.allowed() is None


def test_a_budget_does_not_touch_an_answer_without_reasoning(compiler, tokenizer, opening):
    answer = Answer(compiler, tokenizer, opening, budget=2, grammar=None)
    answer.say("the quick brown fox jumps over the lazy dog")
    assert answer.allowed() is None
