"""Grammars through llguidance: compiled in a thread and kept, advanced token by token, turned into masks.

The only module that knows the library. What it is given are `GrammarSpec`s; the library checks them, and what it cannot
honour it says by the keyword, which becomes a GrammarError. Schemas never reach the network: a `$ref` that points
outside its schema is an error.

Grammars that were compiled are kept, the most recently used ones, and a sequence gets a copy that shares the compiled
tables (some microseconds). The vocabulary itself is read once, in the same thread, when the first grammar is asked for.
"""

from __future__ import annotations

import json
import os
import re
import traceback
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import llguidance
import numpy as np
from llguidance.gbnf_to_lark import any_to_lark

from engines.errors import HeadraceError
from engines.native.grammar.constraint import (
    Choosing,
    Free,
    GrammarError,
    Limit,
    Matched,
    OneToken,
    Progress,
    TokenConstraint,
    TokenMasks,
)
from engines.native.grammar.thinking import ThinkingConstraint
from engines.native.tokenizer import Tokenizer
from engines.native.types import GrammarSpec, ThinkingSpec

MAX_GRAMMARS = 256  # compiled ones that are kept
_MAX_ERROR_CHARS = 300
_COMPILER_THREADS = 2
_MAX_MASK_THREADS = 8

LoadVocabulary = Callable[[], tuple[Tokenizer, frozenset[int]]]
"""The tokenizer, and the ids that the model ends with beside those that the tokenizer names."""


class GrammarConstraint:
    """Satisfies `TokenConstraint`."""

    __slots__ = ("matcher",)

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self.matcher = matcher

    @property
    def error(self) -> str:
        return _first_line(self.matcher.get_error())

    def limit(self) -> Limit:
        return Matched(self.matcher)

    def limit_or(self, token_id: int) -> Limit:
        return Matched(self.matcher, token_id)

    def advance(self, token_id: int) -> Progress:
        matcher = self.matcher
        if matcher.is_error() or not matcher.consume_token(token_id):
            return "failed"
        return "complete" if matcher.is_stopped() else "open"


class GrammarCompiler:
    """Satisfies `Constraints`, for one model.

    `load` is called once, in a thread. `vocab_size` is the model's, which may exceed the tokenizer's: ids beyond that
    are never allowed. `mask_threads` make the masks of one step; half the cores unless told.
    """

    def __init__(self, load: LoadVocabulary, vocab_size: int, mask_threads: int | None = None) -> None:
        self._load = load
        self._vocab_size = vocab_size
        self._threads = ThreadPoolExecutor(_COMPILER_THREADS, thread_name_prefix="grammar")
        self._vocabulary: Future[_Vocabulary] | None = None
        self._eos_token_ids: frozenset[int] = frozenset()
        self._unended = np.zeros(-(-vocab_size // 32), dtype=np.int32)  # every token of the vocabulary but the ends
        self._bits = np.zeros((0, -(-vocab_size // 32)), dtype=np.int32)
        self._compiled: OrderedDict[GrammarSpec, Future[llguidance.LLMatcher]] = OrderedDict()
        threads = mask_threads or min(_MAX_MASK_THREADS, (os.cpu_count() or 1) // 2)
        self._executor = llguidance.LLExecutor(threads) if threads > 1 else None

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

        def constraint(matcher: llguidance.LLMatcher) -> TokenConstraint:
            inner = GrammarConstraint(matcher.deep_copy())
            return inner if thinking is None else vocabulary.result().thinking(thinking, inner)

        return _then(compiled, constraint)

    def masks(self, choosing: Sequence[Choosing]) -> TokenMasks:
        limited = [(choice, limit) for choice in choosing if not isinstance(limit := choice.constraint.limit(), Free)]
        bits = self._cleared_rows(len(limited))
        matchers: list[tuple[llguidance.LLMatcher, int]] = []
        for row, (_, limit) in enumerate(limited):
            if isinstance(limit, Matched):
                matchers.append((limit.matcher, row))
            elif isinstance(limit, OneToken):
                bits[row, limit.token_id // 32] = _bit(limit.token_id)
            else:
                bits[row] = self._unended
        self._match(matchers, bits)
        for row, (choice, limit) in zip(bits, limited, strict=True):
            if isinstance(limit, Matched):
                self._hold_back_end(row, choice.stop_token_ids)
                if limit.also >= 0:
                    row[limit.also // 32] |= _bit(limit.also)
        return TokenMasks([choice.place for choice, _ in limited], bits)

    def _cleared_rows(self, count: int) -> np.ndarray:
        """Memory that the last masks were in: a megabyte of new pages in every step costs more than what they hold."""
        if len(self._bits) < count:
            self._bits = np.zeros((2 * count, -(-self._vocab_size // 32)), dtype=np.int32)
        bits = self._bits[:count]
        bits.fill(0)
        return bits

    def _match(self, matchers: list[tuple[llguidance.LLMatcher, int]], bits: np.ndarray) -> None:
        if self._executor is not None and len(matchers) > 1:
            self._executor.unsafe_compute_mask_ptr(matchers, bits.ctypes.data, bits.strides[0], len(bits))
            return
        for matcher, row in matchers:
            matcher.unsafe_compute_mask_ptr(bits[row].ctypes.data, bits[row].nbytes)

    def _hold_back_end(self, row: np.ndarray, stop_token_ids: frozenset[int]) -> None:
        """Forbid end tokens that do not count now, unless the grammar has nothing else to say."""
        forbidden = [token_id for token_id in self._eos_token_ids - stop_token_ids if _get(row, token_id)]
        for token_id in forbidden:
            row[token_id // 32] ^= _bit(token_id)
        if forbidden and not row.any():
            for token_id in forbidden:
                row[token_id // 32] ^= _bit(token_id)

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _read_vocabulary(self) -> _Vocabulary:
        try:
            tokenizer, more_eos = self._load()
        except (ValueError, OSError, HeadraceError) as error:
            raise GrammarError(f"this model's tokenizer cannot be loaded: {error}") from error
        if tokenizer.token_table(skip_special_tokens=False) is None:
            raise GrammarError("this model's tokens are no pieces of text, so its answers cannot be constrained")
        ends = frozenset(token_id for token_id in tokenizer.eos_token_ids | more_eos if token_id < self._vocab_size)
        if not ends:
            raise GrammarError("this model has no end token, so its answers cannot be constrained")
        vocabulary = _Vocabulary(tokenizer, self._vocab_size, ends)
        self._eos_token_ids = ends
        everything = np.ones(self._unended.size * 32, dtype=bool)
        everything[[*ends]] = False
        everything[tokenizer.vocab_size :] = False
        self._unended = np.packbits(everything, bitorder="little").view(np.int32)
        return vocabulary

    def _compile(self, spec: GrammarSpec, vocabulary: Future[_Vocabulary]) -> llguidance.LLMatcher:
        # The vocabulary was submitted before and by one of several threads, so that waiting for it ends.
        matcher = llguidance.LLMatcher(vocabulary.result().tokens, _grammar_text(spec), log_level=0)
        if matcher.is_error():
            raise GrammarError(_explain(matcher.get_error()))
        if matcher.is_stopped():
            raise GrammarError("it allows nothing but an empty answer")
        return matcher


class _Vocabulary:
    """A tokenizer as the library has it, and what following reasoning needs of it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._token_bytes = [tokenizer.token_bytes[token_id] for token_id in range(vocab_size)]
        wrapper: Any = _Wrapper(
            self._token_bytes,
            min(eos_token_ids),
            sorted(token_id for token_id in tokenizer.special_ids if token_id < vocab_size),
            tokenizer,
        )
        self.tokens = llguidance.LLTokenizer(wrapper, eos_token=sorted(eos_token_ids))

    def thinking(self, spec: ThinkingSpec, inner: GrammarConstraint | None) -> ThinkingConstraint:
        closing = self._tokenizer.encode(f"\n{spec.closing}\n\n", add_special_tokens=False)
        return ThinkingConstraint(spec, inner, self._token_bytes, self._tokenizer.token_id(spec.opening), closing)


@dataclass(frozen=True, slots=True)
class _Wrapper:
    """What llguidance asks of a tokenizer."""

    tokens: Sequence[bytes]
    eos_token_id: int
    special_token_ids: Sequence[int]
    tokenizer: Tokenizer
    bos_token_id: None = None
    is_tokenizer_wrapper: bool = True

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        return self.tokenizer.encode(text, add_special_tokens=False)


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


def _bit(token_id: int) -> int:
    """As a signed word."""
    bit = token_id % 32
    return 1 << bit if bit < 31 else -(1 << 31)


def _get(row: np.ndarray, token_id: int) -> bool:
    return bool(row[token_id // 32] & _bit(token_id))


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
