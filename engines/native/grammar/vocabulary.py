"""A model's vocabulary as the grammar library reads it, cut into the slices that make its masks cheap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import llguidance

from engines.native.grammar.constraint import Answering
from engines.native.grammar.thinking import ThinkingConstraint
from engines.native.tokenizer import Tokenizer
from engines.native.types import ThinkingSpec

# Where a grammar allows every token of a slice, the library takes over the slice's mask and walks only the other
# tokens; so a string that may go on for n more characters wants a slice of nearly n. The library's own shortest is of
# 10, so that in the last 9 characters before `maxLength` it walks all 150 thousand tokens of a vocabulary like Qwen3's.
# More slices than these gain nothing (tokens longer than n are walked in every slice that has such), and each costs
# some 50 ms while the vocabulary is read.
_SLICE_CHARS = (2, 4, 6, 8, 10, 12, 16, 30)
_STRING_CHAR = r'[^"\\\x00-\x1F\x7F]'
_WHITE_SPACE = r"[\x20\x0A\x0D\x09]+"
# None: the library's own
SLICES: list[str] | None = [
    _WHITE_SPACE,
    *(f"{_STRING_CHAR}{{1,{chars}}}" for chars in _SLICE_CHARS),
    f"{_STRING_CHAR}+",
]


class Vocabulary:
    """A tokenizer as the library has it, and what following reasoning needs of it. `vocab_size` is the model's."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._token_bytes = [tokenizer.token_bytes[token_id] for token_id in range(vocab_size)]
        wrapper: Any = _Wrapper(
            self._token_bytes,
            min(eos_token_ids),
            sorted(token_id for token_id in tokenizer.special_ids if token_id < vocab_size),
            tokenizer,
        )
        self.tokens = llguidance.LLTokenizer(wrapper, eos_token=sorted(eos_token_ids), slices=SLICES)

    def thinking(self, spec: ThinkingSpec, inner: Answering | None) -> ThinkingConstraint:
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
