"""Shared memory from one writing process to several reading ones on the same host: records in order, in microseconds.

    line 0           head: bytes written since the beginning
    line 1 + rank    tail: bytes that this rank has read; a count that grows while it lives; whether it sleeps
    from DATA on     a ring of frames: length and checksum of a piece of a record, then the piece

A line is 64 bytes, so that no two processes write to one cache line. A frame becomes visible with the head that follows
it; the checksum covers processors that let the two stores be seen in the other order. Knows no plans and no processes.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time
import zlib
from collections.abc import Callable

CAPACITY = 1 << 22
_LINE = 8  # words
_TAIL, _BEAT, _ASLEEP = range(3)
_FRAME = struct.Struct("<II")
_MORE = 1 << 31  # flag in a frame's length: the record goes on in the next frame
_LONGEST_PIECE = CAPACITY // 4
_NAP_S = 0.00005
_NAPS_UNTIL_S = 1.0
_SLEEP_S = 0.1


def create_memory(world_size: int) -> int:
    """A file descriptor of zeroed shared memory for a ring; children inherit it, and nothing is left behind."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("headrace-ranks")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, _data_start(world_size) + CAPACITY)
    return fd


class Ring:
    """One process's view of the memory behind `fd`. Rank 0 writes, the others read."""

    def __init__(self, fd: int, rank: int, world_size: int) -> None:
        self._memory = memoryview(mmap.mmap(fd, _data_start(world_size) + CAPACITY))
        self._words = self._memory[: _data_start(world_size)].cast("Q")
        self._data = self._memory[_data_start(world_size) :]
        self._mine = _LINE * (1 + rank)
        self._readers = [_LINE * (1 + reader) for reader in range(1, world_size)]
        self._position = 0  # of the writer: head; of a reader: tail

    # --- every rank ---------------------------------------------------------------------------------------------------

    def beat(self) -> None:
        """This process lives."""
        self._words[self._mine + _BEAT] += 1

    def beats(self, rank: int) -> int:
        """Grows while a rank lives."""
        return self._words[_LINE * (1 + rank) + _BEAT]

    # --- the writer ---------------------------------------------------------------------------------------------------

    def write(self, record: bytes, check: Callable[[], None]) -> list[int]:
        """Publish a record. Returns the ranks that sleep and want to be woken.

        While readers are a whole ring behind it waits, and calls `check`, which raises where waiting is in vain.
        """
        for start in range(0, len(record), _LONGEST_PIECE):
            piece = record[start : start + _LONGEST_PIECE]
            more = _MORE if start + len(piece) < len(record) else 0
            frame = _FRAME.pack(len(piece) | more, zlib.crc32(piece)) + piece
            while self._position + len(frame) - min(self._words[at + _TAIL] for at in self._readers) > CAPACITY:
                check()
                time.sleep(_NAP_S)
            self._copy_in(frame)
            self._position += len(frame)
            self._words[0] = self._position
        return [reader for reader, at in enumerate(self._readers, 1) if self._words[at + _ASLEEP]]

    def _copy_in(self, frame: bytes) -> None:
        at = self._position % CAPACITY
        first = min(len(frame), CAPACITY - at)
        self._data[at : at + first] = frame[:first]
        self._data[: len(frame) - first] = frame[first:]

    # --- a reader -----------------------------------------------------------------------------------------------------

    def read(self, sleep: Callable[[float], object], spin_s: float) -> bytes:
        """The next record: spins for `spin_s` at first, then naps, and in the end sleeps.

        `sleep` is given seconds and returns earlier when the writer's wake-up arrives.
        """
        pieces: list[bytes] = []
        while True:
            self._await_frame(sleep, spin_s)
            length, piece = self._frame()
            pieces.append(piece)
            if not length & _MORE:
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _await_frame(self, sleep: Callable[[float], object], spin_s: float) -> None:
        words, position = self._words, self._position
        if words[0] != position:
            return
        started = time.monotonic()
        while words[0] == position:
            waited = time.monotonic() - started
            if waited < spin_s:
                continue
            if waited < _NAPS_UNTIL_S:
                time.sleep(_NAP_S)
                continue
            words[self._mine + _ASLEEP] = 1
            if words[0] == position:
                sleep(_SLEEP_S)
            words[self._mine + _ASLEEP] = 0

    def _frame(self) -> tuple[int, bytes]:
        for _ in range(1000):
            length, checksum = _FRAME.unpack(self._copy_out(self._position, _FRAME.size))
            size = length & ~_MORE
            if size <= _LONGEST_PIECE:
                piece = self._copy_out(self._position + _FRAME.size, size)
                if zlib.crc32(piece) == checksum:
                    self._position += _FRAME.size + size
                    self._words[self._mine + _TAIL] = self._position
                    return length, piece
            time.sleep(_NAP_S)  # the head was seen before what it announces
        raise RuntimeError("a record between ranks is damaged")

    def _copy_out(self, position: int, size: int) -> bytes:
        at = position % CAPACITY
        first = min(size, CAPACITY - at)
        data = bytes(self._data[at : at + first])
        return data if first == size else data + bytes(self._data[: size - first])


class Pulse:
    """Whether a rank still beats, for someone who looks at regular times; a pause of the looker itself counts once."""

    def __init__(self, ring: Ring, rank: int, patience: int) -> None:
        self._ring, self._rank, self._patience = ring, rank, patience
        self._beats = 0
        self._looks = 0

    def stopped(self) -> bool:
        """To be called at every look: whether the last `patience` looks found no new beat."""
        beats = self._ring.beats(self._rank)
        self._looks = self._looks + 1 if beats == self._beats else 0
        self._beats = beats
        return self._looks > self._patience


def _data_start(world_size: int) -> int:
    """In bytes, on a page's boundary."""
    return -(-(1 + world_size) * _LINE * 8 // mmap.PAGESIZE) * mmap.PAGESIZE
