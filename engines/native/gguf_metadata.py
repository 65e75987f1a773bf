"""What a GGUF file says before its tensors' data, read in one pass: hyperparameters, vocabulary, where tensors lie.

Owns the layout of GGUF versions 2 and 3, little-endian (the format's specification is in ggml's docs/gguf.md). Knows no
key's meaning. Exists beside the gguf package because its reader makes one numpy array per vocabulary entry, which
takes seconds for a vocabulary that is read here in under a tenth of one.
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

GGUFScalar = str | int | float | bool
GGUFValue = GGUFScalar | list[str] | list[int] | list[float] | list[bool]

_SCALARS = {  # GGUF value type -> struct code
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32  # bytes; general.alignment overrides it
_LENGTH = struct.Struct("<Q")
_WINDOW_BYTES = 1 << 20  # read granularity; a multi-gigabyte file is never read beyond its metadata


class GGUFError(ValueError):
    """The file is not a GGUF file that can be read here; the message says why."""


class GGUFTensor(NamedTuple):
    """One tensor's entry. `shape` is outermost dimension first, in elements; `offset` counts from the file's start."""

    shape: tuple[int, ...]
    type_id: int  # ggml's number of the storage type
    offset: int


class GGUFHeader(NamedTuple):
    """Everything before the tensors' data."""

    metadata: dict[str, GGUFValue]
    tensors: dict[str, GGUFTensor]


def read_gguf_metadata(path: str | Path) -> dict[str, GGUFValue]:
    """All key-value pairs of the file, arrays as lists. Raises GGUFError, or OSError where the file can't be opened."""
    with open(path, "rb") as file:
        cursor = _Cursor(file)
        _, num_pairs = _read_counts(cursor, path)
        return _read_pairs(cursor, num_pairs, path)


def read_gguf_header(path: str | Path) -> GGUFHeader:
    """All key-value pairs and where each tensor lies. Raises GGUFError, or OSError where the file can't be opened."""
    with open(path, "rb") as file:
        cursor = _Cursor(file)
        num_tensors, num_pairs = _read_counts(cursor, path)
        metadata = _read_pairs(cursor, num_pairs, path)
        entries: dict[str, GGUFTensor] = {}
        for _ in range(num_tensors):
            name = cursor.string()
            shape = tuple(int(cursor.scalar("Q")) for _ in range(int(cursor.scalar("I"))))
            entries[name] = GGUFTensor(shape[::-1], int(cursor.scalar("I")), int(cursor.scalar("Q")))
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0:
            raise GGUFError(f"{path}: general.alignment is {alignment!r}")
        data_start = -(-cursor.offset // alignment) * alignment
    return GGUFHeader(metadata, {name: t._replace(offset=data_start + t.offset) for name, t in entries.items()})


def read_gguf_float32s(path: str | Path, tensor: GGUFTensor) -> tuple[float, ...]:
    """The elements of a small float32 tensor. Raises GGUFError where it is of another type or cut off."""
    count = math.prod(tensor.shape)
    if tensor.type_id != 0:
        raise GGUFError(f"{path}: a tensor of storage type {tensor.type_id} where float32 was expected")
    with open(path, "rb") as file:
        file.seek(tensor.offset)
        data = file.read(4 * count)
    if len(data) < 4 * count:
        raise GGUFError(f"{path} ends inside a tensor: it is cut short or damaged")
    return struct.unpack(f"<{count}f", data)


def _read_counts(cursor: _Cursor, path: str | Path) -> tuple[int, int]:
    """(number of tensors, number of key-value pairs), after a look at the format's name and version."""
    magic = cursor.take(4)
    if magic != b"GGUF":
        raise GGUFError(f"{path} is not a GGUF file: it starts with {magic!r}")
    version = cursor.scalar("I")
    if version not in (2, 3):
        raise GGUFError(f"{path} has GGUF version {version}; versions 2 and 3, little-endian, can be read")
    return int(cursor.scalar("Q")), int(cursor.scalar("Q"))


def _read_pairs(cursor: _Cursor, count: int, path: str | Path) -> dict[str, GGUFValue]:
    try:
        return {cursor.string(): cursor.value(int(cursor.scalar("I"))) for _ in range(count)}
    except UnicodeDecodeError as error:
        raise GGUFError(f"{path}: damaged metadata ({error})") from error


class _Cursor:
    """A forward reader over a sliding window of the file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._unread = os.fstat(file.fileno()).st_size
        self._window = b""
        self._position = 0  # in the window

    @property
    def offset(self) -> int:
        """Bytes of the file taken so far."""
        return self._file.tell() - (len(self._window) - self._position)

    def take(self, num_bytes: int) -> bytes:
        end = self._position + num_bytes
        if end > len(self._window):
            self._refill(num_bytes)
            end = num_bytes
        piece = self._window[self._position : end]
        self._position = end
        return piece

    def scalar(self, code: str) -> int | float | bool:
        return struct.unpack("<" + code, self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        return self.take(int(self.scalar("Q"))).decode("utf-8")

    def value(self, value_type: int) -> GGUFValue:
        if value_type == _STRING:
            return self.string()
        if value_type == _ARRAY:
            return self._array(int(self.scalar("I")), int(self.scalar("Q")))
        return self.scalar(_code(value_type))

    def _array(self, value_type: int, count: int) -> GGUFValue:
        if value_type == _STRING:
            return self._strings(count)
        code = _code(value_type)
        data = self.take(count * struct.calcsize(code))  # fails on a count that the file can't hold
        return list(struct.unpack(f"<{count}{code}", data))

    def _strings(self, count: int) -> list[str]:
        # The hot loop of start-up: a hundred thousand short strings, so the window is walked without method calls.
        strings: list[str] = []
        unpack, header = _LENGTH.unpack_from, _LENGTH.size
        window, position = self._window, self._position
        for _ in range(count):
            start = position + header
            if start <= len(window):
                end = start + unpack(window, position)[0]
                if end <= len(window):
                    strings.append(window[start:end].decode("utf-8"))
                    position = end
                    continue
            self._position = position
            strings.append(self.string())
            window, position = self._window, self._position
        self._position = position
        return strings

    def _refill(self, num_bytes: int) -> None:
        """Move the unread rest to the window's start and read until `num_bytes` are there."""
        rest = self._window[self._position :]
        wanted = num_bytes - len(rest)
        if wanted > self._unread:
            raise GGUFError(f"{self._file.name} ends inside its metadata: it is cut short or damaged")
        fresh = self._file.read(max(wanted, _WINDOW_BYTES))
        self._unread -= len(fresh)
        self._window, self._position = rest + fresh, 0


def _code(value_type: int) -> str:
    try:
        return _SCALARS[value_type]
    except KeyError:
        raise GGUFError(f"unknown value type {value_type} in the metadata: a damaged file?") from None
