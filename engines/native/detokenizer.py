"""Token ids to text as they are generated: every piece final when it is given out, nothing lost at the end.

Owns what a stream has pending: the bytes of an unfinished character, and the rule for a text's first space. What a
token's bytes are is token_table.py's. Knows nothing of stop sequences.

The pieces of a stream, joined, are `Tokenizer.decode` of all its ids, however the ids are cut into pushes. One case
differs: SentencePiece-style decoders turn a whole run of byte tokens into one U+FFFD per byte when any part of the run
is invalid, which can't be known while the run goes on; here its valid characters stay, and each invalid stretch
becomes one U+FFFD.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Sequence

from engines.native.token_table import TokenTable
from engines.native.tokenizer import Tokenizer


class Detokenizer:
    """The text of one generated choice.

    `after_text` says that the choice continues a text (a completion of a prompt, not an answer of its own), so that a
    leading space belongs to it. `spaces_between_special_tokens=False` drops the space that some decoders write between
    two special tokens; most write none.
    """

    __slots__ = ("_at_start", "_pending", "_plain", "_table", "_texts", "_window")

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        after_text: bool = False,
    ) -> None:
        table = tokenizer.token_table(skip_special_tokens)
        self._window = _Window(tokenizer, skip_special_tokens, spaces_between_special_tokens) if table is None else None
        self._table = table
        self._texts: list[str | None] = [] if table is None else table.texts
        self._pending = b""  # the bytes of a character that is not complete
        self._at_start = table is not None and table.leading != "keep" and not after_text
        self._plain = table is not None and not self._at_start  # nothing pending: a token's text is the stream's

    def push(self, token_ids: Sequence[int]) -> str:
        """Take the next token ids; the text that has become final."""
        if self._plain and len(token_ids) == 1:
            token_id = token_ids[0]
            if token_id < len(self._texts) and (text := self._texts[token_id]) is not None:
                return text
        if self._window is not None:
            return "".join(map(self._window.push, token_ids))
        return self._push_bytes(token_ids)

    def push_each(self, token_ids: Sequence[int]) -> list[str]:
        """`push`, one piece per token: "" while a character is incomplete, which then is its last token's.

        Their running lengths are the text offsets that logprobs carry.
        """
        return [self.push((token_id,)) for token_id in token_ids]

    def finish(self) -> str:
        """The stream has ended: what is left, an incomplete character as U+FFFD."""
        if self._window is not None:
            return self._window.finish()
        text, _ = utf_8_decode(self._pending, "replace", True)
        self._pending = b""
        self._plain = not self._at_start
        return text

    def _push_bytes(self, token_ids: Sequence[int]) -> str:
        table = self._table
        assert table is not None
        if self._at_start and table.leading == "first_piece":
            data = self._pending + self._first_pieces(table, token_ids)
        else:
            data = self._pending + b"".join(map(table.__getitem__, token_ids))
        text, used = utf_8_decode(data, "replace", False)
        self._pending = data[used:]
        if self._at_start and table.leading == "strip_space" and text:
            self._at_start = False
            text = text.removeprefix(" ")
        self._plain = not self._pending and not self._at_start
        return text

    def _first_pieces(self, table: TokenTable, token_ids: Sequence[int]) -> bytes:
        for i, token_id in enumerate(token_ids):
            piece = table.first_piece(token_id)
            if piece is not None:
                self._at_start = False
                return piece + b"".join(map(table.__getitem__, token_ids[i + 1 :]))
        return b""


def texts_of_tokens(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[str]:
    """What each token adds to their text: joined they are all of it, special tokens as written."""
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=False, after_text=True)
    texts = detokenizer.push_each(token_ids)
    if texts:
        texts[-1] += detokenizer.finish()
    return texts


class _Window:
    """Any decoder at all, by decoding a short window of tokens with and without the new ones.

    The window starts at the tokens of the last piece given out, so that a decoder which treats neighbours together
    (WordPiece's spaces, say) sees them together. Decoders that look further back, or change text they have already
    written, are not followed.
    """

    __slots__ = ("_ids", "_joins_special", "_last_is_special", "_num_shown", "_skip_special_tokens", "_tokenizer")

    _PATIENCE = 8  # tokens that may be waited for; a character has at most four bytes

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool, spaces_between_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._joins_special = not spaces_between_special_tokens
        self._ids: list[int] = []
        self._num_shown = 0  # tokens at the window's start whose text is given out
        self._last_is_special = False

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        is_special = token_id in self._tokenizer.special_ids
        joins = self._joins_special and is_special and self._last_is_special
        self._last_is_special = is_special
        text = self._new_text()
        if not text and not self._tokenizer.decode([token_id], self._skip_special_tokens):
            self._ids.pop()  # a skipped token, or an id without one
        if not text or (text.endswith("\ufffd") and len(self._ids) - self._num_shown < self._PATIENCE):
            return ""
        self._advance()
        return text.removeprefix(" ") if joins else text

    def finish(self) -> str:
        text = self._new_text()
        self._advance()
        return text

    def _new_text(self) -> str:
        decode, skip = self._tokenizer.decode, self._skip_special_tokens
        return decode(self._ids, skip)[len(decode(self._ids[: self._num_shown], skip)) :]

    def _advance(self) -> None:
        self._ids = self._ids[self._num_shown :]
        self._num_shown = len(self._ids)
