"""What a tokenizer is made of: the contract of the algorithm behind it, and the parts a model's files give.

Two algorithms stand behind `TokenizerBackend`: the `tokenizers` library here, tiktoken in tiktoken_backend.py. Loaders
(tokenizer_files.py, gguf_tokenizer.py) produce `TokenizerParts`; `tokenizer.Tokenizer` is what the engine uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol, cast

from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as RustTokenizer

from engines.native.token_table import TokenPieces, pieces_of


class TokenizerLoadError(ValueError):
    """The files hold no tokenizer that can be loaded; the message names the file and what can be done."""


class TokenizerBackend(Protocol):
    """The algorithm. Methods may be called from several threads at once and release the GIL on long texts."""

    @property
    def vocab_size(self) -> int:
        """How many ids there are. With holes in the vocabulary a few larger ids may exist; they work all the same."""
        ...

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that stand for no text: `skip_special_tokens` drops them."""
        ...

    @property
    def pieces(self) -> TokenPieces | None:
        """Bytes by token id, None where text is not a concatenation of them."""
        ...

    def encode(self, text: str, add_special_tokens: bool) -> list[int]: ...

    def encode_with_offsets(self, text: str, add_special_tokens: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """As `encode`, and of each token the bytes [start, stop) of `text` in UTF-8, (0, 0) for those put around it."""
        ...

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Unknown ids stand for nothing. Raises OverflowError for ids outside [0, 2**32)."""
        ...

    def token_to_id(self, token: str) -> int | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerParts:
    """All that a model's files say about its text side."""

    backend: TokenizerBackend
    special_tokens: Mapping[str, str] = field(default_factory=dict[str, str])  # "bos_token" -> "<s>", for templates
    eos_token_ids: frozenset[int] = frozenset()
    chat_templates: Mapping[str, str] = field(default_factory=dict[str, str])  # name -> source; "default" is the usual


class TokenizersBackend:
    """A pipeline of the `tokenizers` library (normalizer, pre-tokenizer, model, post-processor, decoder).

    The pipeline must not be changed after it is handed over: the library allows concurrent calls only on an unchanged
    one.
    """

    def __init__(self, pipeline: RustTokenizer) -> None:
        pipeline.no_truncation()  # a tokenizer.json may carry its training run's settings
        pipeline.no_padding()
        self._pipeline = pipeline
        added = pipeline.get_added_tokens_decoder()
        # Asking for the whole vocabulary instead would take a third of a second.
        self.vocab_size = max(pipeline.get_vocab_size(True), 1 + max(added, default=-1))
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.pieces = pieces_of(pipeline, self.vocab_size)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        # A batch of one, because only the batch call releases the GIL.
        return self._pipeline.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    def encode_with_offsets(self, text: str, add_special_tokens: bool) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self._pipeline.encode_batch([text], add_special_tokens=add_special_tokens)[0]
        if text.isascii():
            return encoding.ids, encoding.offsets
        # The library counts characters.
        at = [0, *accumulate(len(character.encode("utf-8")) for character in text)]
        return encoding.ids, [(at[start], at[stop]) for start, stop in encoding.offsets]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        return self._pipeline.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        return self._pipeline.token_to_id(token)


def add_tokens(pipeline: RustTokenizer, tokens: Sequence[AddedToken]) -> None:
    """Match these tokens whole in any text. One that the vocabulary has keeps its id, others get the next free ones."""
    cast(Any, pipeline).add_tokens(list(tokens))  # the stub leaves the element type out


def set_boundary_tokens(pipeline: RustTokenizer, bos: str | None, eos: str | None) -> None:
    """Make `add_special_tokens` put `bos` before and `eos` after a text; None adds nothing. Tokens must exist."""
    added = [(token, pipeline.token_to_id(token)) for token in (bos, eos) if token is not None]
    pipeline.post_processor = processors.TemplateProcessing(
        single=[*([bos] if bos is not None else []), "$A", *([eos] if eos is not None else [])],
        special_tokens=list(dict(added).items()),
    )
