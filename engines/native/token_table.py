"""What each token id stands for in running text, as bytes: the table behind detokenization and logprobs.

Almost every tokenizer decodes token by token: byte-level BPE writes bytes in an alphabet of its own, SentencePiece
style vocabularies write a space as U+2581 and unknown characters as byte tokens `<0xE4>`. For those, the text of a
sequence is the concatenation of the tokens' bytes, read as UTF-8, plus a rule for its very start. `pieces_of` finds
that rule in a `tokenizers` decoder, or returns None where text is not such a concatenation (WordPiece, CTC, none).

Knows nothing of streams (detokenizer.py) nor of where a vocabulary comes from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from tokenizers import Tokenizer as RustTokenizer

# How a text's start differs from the concatenation:
#   keep         not at all
#   strip_space  one leading space of the whole text is dropped
#   first_piece  the first token is written by `TokenPieces.first_piece` instead
LeadingRule = Literal["keep", "strip_space", "first_piece"]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class TokenPieces:
    """Token id -> bytes, None where the vocabulary has no such id. Most ids are in [0, size)."""

    size: int
    piece: Callable[[int], bytes | None]
    first_piece: Callable[[int], bytes | None]
    leading: LeadingRule = "keep"


class TokenTable:
    """Bytes (`table[id]`) and ready-made texts by token id, filled as tokens are met.

    `texts[id]` is the token's text, None where it is not known yet or is not whole UTF-8. Ids without a token (models
    pad their vocabularies) and tokens in `hidden` (special tokens that are to be skipped) stand for nothing. Threads
    may share a table: an entry filled twice is filled alike.
    """

    __slots__ = ("_hidden", "_pieces", "_source", "leading", "texts")

    def __init__(self, source: TokenPieces, hidden: frozenset[int] = frozenset()) -> None:
        self._source = source
        self._hidden = hidden
        self._pieces: list[bytes | None] = [None] * source.size
        self.texts: list[str | None] = [None] * source.size
        self.leading: LeadingRule = source.leading

    def __getitem__(self, token_id: int) -> bytes:
        """The token's bytes. Raises OverflowError for ids outside [0, 2**32)."""
        if not 0 <= token_id < len(self._pieces):
            return b"" if token_id in self._hidden else self._source.piece(token_id) or b""
        known = self._pieces[token_id]
        if known is not None:
            return known
        piece = b"" if token_id in self._hidden else self._source.piece(token_id) or b""
        self._pieces[token_id] = piece
        try:
            self.texts[token_id] = piece.decode("utf-8")
        except UnicodeDecodeError:
            pass  # part of a character: its text depends on its neighbours
        return piece

    def first_piece(self, token_id: int) -> bytes | None:
        """The token's bytes at the very start of a text; None when it is not part of the text at all."""
        return None if token_id in self._hidden else self._source.first_piece(token_id)


def pieces_of(backend: RustTokenizer, size: int) -> TokenPieces | None:
    """The pieces of a `tokenizers` tokenizer, None where its decoder does not work token by token."""
    decoder: object = backend.decoder
    if decoder is None:
        return None
    rules = _rules(cast(dict[str, Any], json.loads(cast(Any, decoder).__getstate__())))
    if rules is None:
        return None
    to_bytes, to_first_bytes, leading = rules

    def piece(token_id: int) -> bytes | None:
        token = backend.id_to_token(token_id)
        return None if token is None else to_bytes(token)

    def first_piece(token_id: int) -> bytes | None:
        token = backend.id_to_token(token_id)
        return None if token is None else to_first_bytes(token)

    return TokenPieces(size, piece, first_piece, leading)


# --- decoders ---------------------------------------------------------------------------------------------------------

_ToBytes = Callable[[str], bytes]


def _rules(decoder: Mapping[str, Any]) -> tuple[_ToBytes, _ToBytes, LeadingRule] | None:
    steps: list[Mapping[str, Any]] = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    if kinds in (["ByteLevel"], ["ByteLevel", "Fuse"]):
        return _byte_level_bytes, _byte_level_bytes, "keep"
    return _metaspace_rules(steps, kinds)


def _metaspace_rules(steps: list[Mapping[str, Any]], kinds: list[str]) -> tuple[_ToBytes, _ToBytes, LeadingRule] | None:
    """Replace or Metaspace, then ByteFallback, Fuse, Strip, each optional, in this order and no other."""
    order = ["Replace", "Metaspace", "ByteFallback", "Fuse", "Strip"]
    if not set(kinds) <= set(order) or kinds != sorted(kinds, key=order.index) or kinds.count("Metaspace") > 1:
        return None
    replacements: list[tuple[str, str]] = []
    first_replacements: list[tuple[str, str]] = []
    leading: LeadingRule = "keep"
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)}:
                replacements.append((pattern, content))
                first_replacements.append((pattern, content))
            case {"type": "Metaspace", "replacement": str(space), "prepend_scheme": str(scheme)}:
                replacements.append((space, " "))
                first_replacements.append((space, " " if scheme == "never" else ""))
                leading = "keep" if scheme == "never" else "first_piece"
            case {"type": "ByteFallback" | "Fuse"}:
                pass
            case {"type": "Strip", "content": " ", "start": 1, "stop": 0} if "Fuse" in kinds and leading == "keep":
                leading = "strip_space"
            case _:
                return None
    fallback = "ByteFallback" in kinds
    return _replacing(replacements, fallback), _replacing(first_replacements, fallback), leading


def _replacing(replacements: list[tuple[str, str]], byte_fallback: bool) -> _ToBytes:
    def to_bytes(token: str) -> bytes:
        for old, new in replacements:
            token = token.replace(old, new)
        if byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        return token.encode("utf-8")

    return to_bytes


def byte_alphabet() -> dict[str, int]:
    """The characters in which byte-level vocabularies write the 256 bytes (GPT-2's encoder, Radford et al. 2019).

    Printable Latin-1 characters stand for their own code; the others, in order, for U+0100, U+0101 and so on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_ALPHABET = byte_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes([_ALPHABET[char] for char in token])
    except KeyError:  # an added token, written as itself
        return token.encode("utf-8")
