"""Vocabularies in tiktoken's own format: one base64 token and its rank a line, special tokens given separately.

Knows the split patterns of the model families that publish such files. Needs the tiktoken package, and imports it only
when such a vocabulary is loaded.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from engines.native.pre_tokenizers import LLAMA3_SPLIT, QWEN2_SPLIT
from engines.native.token_table import TokenPieces
from engines.native.tokenizer_backend import TokenizerLoadError

if TYPE_CHECKING:
    import tiktoken

# config.json's model_type -> split pattern. A file on its own is read with Llama 3's, which is that of cl100k.
_SPLITS = {"llama": LLAMA3_SPLIT, "qwen": QWEN2_SPLIT, None: LLAMA3_SPLIT}


def is_tiktoken_file(path: Path) -> bool:
    """Whether the file's first line is a base64 token and a rank (SentencePiece models share the usual file name)."""
    with open(path, "rb") as file:
        line = file.readline(4096)
    token, separator, rank = line.strip().partition(b" ")
    if not separator or not rank.isdigit():
        return False
    try:
        return bool(base64.b64decode(token, validate=True))
    except binascii.Error:
        return False


class TiktokenBackend:
    """A tiktoken encoding. `bos_id` is what `add_special_tokens` puts before a text, None nothing."""

    def __init__(self, encoding: tiktoken.Encoding, special_tokens: Mapping[str, int], bos_id: int | None) -> None:
        self._encoding = encoding
        self._special_tokens = dict(special_tokens)
        self._prefix = [] if bos_id is None else [bos_id]
        self.vocab_size = encoding.max_token_value + 1
        self.special_ids = frozenset(special_tokens.values())
        self.pieces = TokenPieces(self.vocab_size, self._piece, self._piece)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids = self._encoding.encode(text, allowed_special="all")
        return self._prefix + ids if add_special_tokens else ids

    def encode_with_offsets(self, text: str, add_special_tokens: bool) -> tuple[list[int], list[tuple[int, int]]]:
        ids = self._encoding.encode(text, allowed_special="all")
        ends = list(accumulate(len(self._piece(token_id) or b"") for token_id in ids))
        offsets = list(zip([0, *ends], ends, strict=False))
        prefix = self._prefix if add_special_tokens else []
        return prefix + ids, [(0, 0)] * len(prefix) + offsets

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        shown = (i for i in token_ids if not (skip_special_tokens and i in self.special_ids))
        return b"".join(self._piece(i) or b"" for i in shown).decode("utf-8", errors="replace")

    def token_to_id(self, token: str) -> int | None:
        if token in self._special_tokens:
            return self._special_tokens[token]
        try:
            return self._encoding.encode_single_token(token)
        except KeyError:
            return None

    def _piece(self, token_id: int) -> bytes | None:
        try:
            return self._encoding.decode_single_token_bytes(token_id)
        except KeyError:
            return None


def load_tiktoken(
    path: Path, special_tokens: Mapping[str, int], model_type: str | None, bos_token: str | None
) -> TiktokenBackend:
    """Raises TokenizerLoadError for a damaged file and for a model type whose split pattern is not known."""
    import tiktoken

    if model_type not in _SPLITS:
        raise TokenizerLoadError(
            f"{path}: the split pattern of a tiktoken vocabulary for model_type {model_type!r} is not known; "
            "a tokenizer.json beside it would be used instead"
        )

    ranks: dict[bytes, int] = {}
    try:
        for line in path.read_bytes().splitlines():
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token)] = int(rank)
        encoding = tiktoken.Encoding(
            path.name,
            pat_str=_SPLITS[model_type],
            mergeable_ranks=ranks,
            special_tokens=dict(special_tokens),
        )
    except ValueError as error:
        raise TokenizerLoadError(f"{path} is not a tiktoken vocabulary: {error}") from error
    return TiktokenBackend(encoding, special_tokens, special_tokens.get(bos_token or ""))
