"""Sequences that wait for a row and blocks: the lowest priority number first, and in order of arrival among equals.

Knows sequences, not why they wait.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from engines.native.sequence import Sequence


class WaitingQueue:
    """Insertion looks at sequences from the nearer end, so that a queue of equals costs nothing to keep in order."""

    def __init__(self) -> None:
        self._sequences: deque[Sequence] = deque()

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def first(self) -> Sequence:
        return self._sequences[0]

    def add(self, sequence: Sequence) -> None:
        """Behind its equals."""
        at = len(self._sequences)
        while at and self._sequences[at - 1].priority > sequence.priority:
            at -= 1
        self._sequences.insert(at, sequence)

    def put_back(self, sequence: Sequence) -> None:
        """Before its equals: it had its turn already."""
        at = 0
        while at < len(self._sequences) and self._sequences[at].priority < sequence.priority:
            at += 1
        self._sequences.insert(at, sequence)

    def pop(self) -> Sequence:
        return self._sequences.popleft()

    def remove(self, sequence: Sequence) -> None:
        self._sequences.remove(sequence)

    def num_tokens(self, of_first: int) -> int:
        """Tokens of the first `of_first` sequences."""
        return sum(len(sequence.token_ids) for sequence in islice(self._sequences, of_first))
