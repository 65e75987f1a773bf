"""A step's limits turned into bits, many rows at once. Knows the library's matchers, not how they come about.

One thread makes them. The library has an executor of several, which costs more than it brings (see
docs/structured-output.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engines.native.grammar.constraint import Choosing, Free, Matched, OneToken, TokenMasks


class MaskMaker:
    """Makes the masks of one step after the other, in the same memory."""

    def __init__(self, vocab_size: int) -> None:
        self._num_words = -(-vocab_size // 32)
        self._bits = np.zeros((0, self._num_words), dtype=np.int32)
        self._unended = np.zeros(self._num_words, dtype=np.int32)  # every token of the vocabulary but the ends
        self.eos_token_ids: frozenset[int] = frozenset()

    def set_vocabulary(self, num_tokens: int, eos_token_ids: frozenset[int]) -> None:
        """`num_tokens` are the tokenizer's, which may be fewer than the model's, or more."""
        everything = np.ones(self._num_words * 32, dtype=bool)
        everything[[*eos_token_ids]] = False
        everything[num_tokens:] = False
        self._unended = np.packbits(everything, bitorder="little").view(np.int32)
        self.eos_token_ids = eos_token_ids

    def masks(self, choosing: Sequence[Choosing]) -> TokenMasks:
        places: list[int] = []
        matched: list[tuple[Matched, int]] = []
        stops: dict[int, frozenset[int]] = {}  # of the rows that a grammar limits
        bits = self._rows(len(choosing))
        for choice in choosing:
            limit = choice.constraint.limit()
            row = len(places)
            match limit:
                case Free():
                    continue
                case Matched():
                    matched.append((limit, row))
                    stops[row] = choice.stop_token_ids
                case OneToken(token_id):
                    bits[row] = 0
                    bits[row, token_id // 32] = _bit(token_id)
                case _:
                    bits[row] = self._unended
            places.append(choice.place)
        bits = bits[: len(places)]
        start, row_bytes = bits.ctypes.data, bits.strides[0]
        for limit, row in matched:
            limit.matcher.unsafe_compute_mask_ptr(start + row * row_bytes, row_bytes)
        if matched:
            self._hold_back_ends(bits, stops)
        for limit, row in matched:
            if limit.also >= 0:
                bits[row, limit.also // 32] |= _bit(limit.also)
        return TokenMasks(places, bits)

    def _rows(self, count: int) -> NDArray[np.int32]:
        """Memory that the last masks were in, and still are: a megabyte of new pages in every step costs more than what
        they hold, and every row is written as a whole."""
        if len(self._bits) < count:
            self._bits = np.zeros((2 * count, self._num_words), dtype=np.int32)
        return self._bits[:count]

    def _hold_back_ends(self, bits: NDArray[np.int32], stops: dict[int, frozenset[int]]) -> None:
        """Forbid end tokens that do not count now, unless the grammar has nothing else to say."""
        forbidden: dict[int, list[int]] = {}
        for token_id in self.eos_token_ids:
            ending = np.flatnonzero(bits[:, token_id // 32] & _bit(token_id))
            for row in ending.tolist():
                if row in stops and token_id not in stops[row]:
                    forbidden.setdefault(row, []).append(token_id)
        for row, token_ids in forbidden.items():
            for token_id in token_ids:
                bits[row, token_id // 32] ^= _bit(token_id)
            if not bits[row].any():
                for token_id in token_ids:
                    bits[row, token_id // 32] ^= _bit(token_id)


def _bit(token_id: int) -> int:
    """As a signed word."""
    bit = token_id % 32
    return 1 << bit if bit < 31 else -(1 << 31)
