"""Grammars through llguidance: compiled in a thread and kept, advanced token by token.

What it is given are `GrammarSpec`s; the library checks them, and what it cannot honour it says by the keyword, which
becomes a GrammarError. Schemas never reach the network: a `$ref` that points outside its schema is an error.

Grammars that were compiled are kept, the most recently used ones, and a sequence gets a copy that shares the compiled
tables (some microseconds). The vocabulary itself is read once, in the same thread, when the first grammar is asked for.
"""

from __future__ import annotations

import json
import re
import traceback
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import llguidance
from llguidance.gbnf_to_lark import any_to_lark

from engines.errors import HeadraceError
from engines.native.grammar.constraint import (
    Choosing,
    GrammarError,
    Limit,
    Matched,
    Progress,
    TokenConstraint,
    TokenMasks,
)
from engines.native.grammar.masks import MaskMaker
from engines.native.grammar.vocabulary import Vocabulary
from engines.native.tokenizer import Tokenizer
from engines.native.types import GrammarSpec, ThinkingSpec

MAX_GRAMMARS = 256  # compiled ones that are kept
_MAX_ERROR_CHARS = 300
_COMPILER_THREADS = 2

LoadVocabulary = Callable[[], tuple[Tokenizer, frozenset[int]]]
"""The tokenizer, and the ids that the model ends with beside those that the tokenizer names."""


class GrammarConstraint:
    """Satisfies `TokenConstraint`."""

    __slots__ = ("_limit", "matcher")

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self.matcher = matcher
        self._limit: Matched = Matched(matcher)

    @property
    def error(self) -> str:
        return _first_line(self.matcher.get_error())

    def limit(self) -> Limit:
        return self._limit

    def limit_or(self, token_id: int) -> Limit:
        return Matched(self.matcher, token_id)

    def advance(self, token_id: int) -> Progress:
        if not self.matcher.consume_token(token_id):  # nor is anything taken in after an error
            return "failed"
        return "complete" if self.matcher.is_stopped() else "open"


class GrammarCompiler:
    """Satisfies `Constraints`, for one model.

    `load` is called once, in a thread. `vocab_size` is the model's, which may exceed the tokenizer's: ids beyond that
    are never allowed.
    """

    def __init__(self, load: LoadVocabulary, vocab_size: int) -> None:
        self._load = load
        self._vocab_size = vocab_size
        self._threads = ThreadPoolExecutor(_COMPILER_THREADS, thread_name_prefix="grammar")
        self._vocabulary: Future[Vocabulary] | None = None
        self._compiled: OrderedDict[GrammarSpec, Future[llguidance.LLMatcher]] = OrderedDict()
        self._masks = MaskMaker(vocab_size)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """What an answer may end with; known when the first constraint is."""
        return self._masks.eos_token_ids

    def request(self, grammar: GrammarSpec | None, thinking: ThinkingSpec | None = None) -> Future[TokenConstraint]:
        if self._vocabulary is None:
            self._vocabulary = self._threads.submit(self._read_vocabulary)
        if grammar is None:
            assert thinking is not None, "there is nothing to constrain"
            return _then(self._vocabulary, lambda vocabulary: vocabulary.thinking(thinking, None))
        compiled = self._compiled.get(grammar)
        if compiled is None:
            compiled = self._compiled[grammar] = self._threads.submit(self._compile, grammar, self._vocabulary)
            if len(self._compiled) > MAX_GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        vocabulary = self._vocabulary

        def constraint(start: llguidance.LLMatcher) -> TokenConstraint:
            inner = GrammarConstraint(start.deep_copy())
            return inner if thinking is None else vocabulary.result().thinking(thinking, inner)

        return _then(compiled, constraint)

    def masks(self, choosing: Sequence[Choosing]) -> TokenMasks:
        return self._masks.masks(choosing)

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _read_vocabulary(self) -> Vocabulary:
        try:
            tokenizer, more_eos = self._load()
        except (ValueError, OSError, HeadraceError) as error:
            raise GrammarError(f"this model's tokenizer cannot be loaded: {error}") from error
        if tokenizer.token_table(skip_special_tokens=False) is None:
            raise GrammarError("this model's tokens are no pieces of text, so its answers cannot be constrained")
        ends = frozenset(token_id for token_id in tokenizer.eos_token_ids | more_eos if token_id < self._vocab_size)
        if not ends:
            raise GrammarError("this model has no end token, so its answers cannot be constrained")
        vocabulary = Vocabulary(tokenizer, self._vocab_size, ends)
        self._masks.set_vocabulary(tokenizer.vocab_size, ends)
        return vocabulary

    def _compile(self, spec: GrammarSpec, vocabulary: Future[Vocabulary]) -> llguidance.LLMatcher:
        # The vocabulary was submitted before and by one of several threads, so that waiting for it ends.
        matcher = llguidance.LLMatcher(vocabulary.result().tokens, _grammar_text(spec), log_level=0)
        if matcher.is_error():
            raise GrammarError(_explain(matcher.get_error()))
        if matcher.is_stopped():
            raise GrammarError("it allows nothing but an empty answer")
        return matcher


# --- grammars ---------------------------------------------------------------------------------------------------------


def _grammar_text(spec: GrammarSpec) -> str:
    """Raises GrammarError for a notation that cannot be read."""
    match spec.kind:
        case "json_schema":
            return f'{{"grammars": [{{"json_schema": {spec.text}}}]}}'
        case "regex":
            return llguidance.LLMatcher.grammar_from_regex(spec.text)
        case "choice":
            literals = (json.dumps(choice, ensure_ascii=False) for choice in json.loads(spec.text))
            return llguidance.LLMatcher.grammar_from_lark("start: " + " | ".join(literals))
        case "lark":
            return llguidance.LLMatcher.grammar_from_lark(spec.text)
        case _:
            try:
                return llguidance.LLMatcher.grammar_from_lark(any_to_lark(spec.text))
            except Exception as error:  # the converter raises whatever its parser happens to
                raise GrammarError(f"it is neither GBNF nor Lark: {_first_line(str(error))}") from error


_UNSUPPORTED = re.compile(r"Unimplemented keys: \[(.*)\]")
_POSITION = re.compile(r"^(at )?\d+\(\d+\): ")


def _explain(error: str) -> str:
    """The library's message in the words of a schema's author."""
    if match := _UNSUPPORTED.search(error):
        keywords = match[1]
        return f"the JSON Schema keyword{'s' if ',' in keywords else ''} {keywords} cannot be enforced"
    if "oneOf constraints are not supported" in error:
        return (
            'the JSON Schema keyword "oneOf" can be enforced only where its alternatives exclude each other by type '
            'or by a required constant; "anyOf" has no such limit'
        )
    return _first_line(_POSITION.sub("", error))


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines()]
    return " ".join(lines[:4])[:_MAX_ERROR_CHARS]


# --- small things -----------------------------------------------------------------------------------------------------


def _then(source: Future[Any], make: Callable[[Any], Any]) -> Future[Any]:
    """A future of make(result); done at once where the source is."""
    made: Future[Any] = Future()

    def finish(done: Future[Any]) -> None:
        try:
            made.set_result(make(done.result()))
        except GrammarError as error:
            made.set_exception(error)
        except BaseException:  # a fault in the library must not take the engine with it
            traceback.print_exc()
            made.set_exception(GrammarError("it cannot be compiled"))

    source.add_done_callback(finish)
    return made
