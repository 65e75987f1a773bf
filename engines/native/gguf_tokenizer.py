"""The tokenizer inside a GGUF file: its vocabulary as a `tokenizers` pipeline, its special tokens and chat templates.

Two kinds of vocabulary are built, by `tokenizer.ggml.model`: "gpt2", byte-level BPE cut as `tokenizer.ggml.pre` says,
and "llama", SentencePiece's BPE, where a token's score orders the merges and unknown characters fall back to bytes.
Control tokens become special tokens, user-defined ones stay visible text; both are matched whole.

Knows the keys under `tokenizer.`; the file's layout is gguf_metadata.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as RustTokenizer

from engines.native.gguf_metadata import GGUFValue, read_gguf_metadata
from engines.native.pre_tokenizers import PRE_TOKENIZATIONS
from engines.native.tokenizer_backend import (
    TokenizerLoadError,
    TokenizerParts,
    TokenizersBackend,
    add_tokens,
    set_boundary_tokens,
)

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # values of tokenizer.ggml.token_type
_SPACE = "\u2581"  # what SentencePiece writes for a space

# Files name one end token and often leave out the others, so control tokens that say "this turn or document is over"
# count as well.
_END_TOKENS = frozenset(
    ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>")
)


def load_gguf_tokenizer(path: Path) -> TokenizerParts:
    """Raises TokenizerLoadError or GGUFError naming what can't be read."""
    return gguf_tokenizer_parts(read_gguf_metadata(path), str(path))


def gguf_tokenizer_parts(metadata: Mapping[str, GGUFValue], name: str) -> TokenizerParts:
    """The same from metadata that is already read; `name` is for messages."""
    vocabulary = _Vocabulary(metadata, name)
    build = {"gpt2": _byte_level, "llama": _sentencepiece}.get(vocabulary.model)
    if build is None:
        raise TokenizerLoadError(
            f"{name}: tokenizer.ggml.model is {vocabulary.model!r}; 'gpt2' and 'llama' can be read from a GGUF file. "
            "Pass the folder of the original tokenizer instead"
        )
    pipeline = build(vocabulary)
    add_tokens(pipeline, vocabulary.added_tokens())
    return TokenizerParts(
        backend=TokenizersBackend(pipeline),
        special_tokens=vocabulary.special_tokens(),
        eos_token_ids=vocabulary.eos_token_ids(),
        chat_templates=_chat_templates(metadata),
    )


class _Vocabulary:
    """The `tokenizer.ggml.*` keys with their types checked."""

    def __init__(self, metadata: Mapping[str, GGUFValue], name: str) -> None:
        self._metadata = metadata
        self.name = name
        self.model: str = self.get("model", str, "")
        self.tokens: list[str] = self.get("tokens", list, [])
        self.types: list[int] = self.get("token_type", list, []) or [_NORMAL] * len(self.tokens)
        if not self.model or not self.tokens or len(self.types) != len(self.tokens):
            raise TokenizerLoadError(f"{name} holds no complete vocabulary under tokenizer.ggml.*")

    def get(self, key: str, kind: type, default: Any) -> Any:
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            return default
        if not isinstance(value, kind):
            raise TokenizerLoadError(f"{self.name}: tokenizer.ggml.{key} is not a {kind.__name__}")
        return value

    def ids(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.tokens)}

    def token(self, key: str, default: int = -1) -> str | None:
        """The token that an id key names, None where the key is absent or out of range."""
        index: int = self.get(key, int, default)
        return self.tokens[index] if 0 <= index < len(self.tokens) else None

    def added_tokens(self) -> list[AddedToken]:
        return [
            AddedToken(token, normalized=False, special=kind == _CONTROL)
            for token, kind in zip(self.tokens, self.types, strict=True)
            if kind in (_CONTROL, _USER_DEFINED)
        ]

    def special_tokens(self) -> dict[str, str]:
        keys = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}
        named = {f"{name}_token": self.token(key) for name, key in keys.items()}
        return {name: token for name, token in named.items() if token is not None}

    def eos_token_ids(self) -> frozenset[int]:
        named = (self.get(key, int, -1) for key in ("eos_token_id", "eot_token_id", "eom_token_id"))
        ends = {index for index in named if 0 <= index < len(self.tokens)}
        by_name = (i for i, token in enumerate(self.tokens) if token in _END_TOKENS and self.types[i] == _CONTROL)
        return frozenset(ends.union(by_name))

    def set_boundaries(self, pipeline: RustTokenizer, adds_bos: bool) -> None:
        bos = self.token("bos_token_id") if self.get("add_bos_token", bool, adds_bos) else None
        eos = self.token("eos_token_id") if self.get("add_eos_token", bool, False) else None
        if bos is not None or eos is not None:
            set_boundary_tokens(pipeline, bos, eos)

    def merges(self) -> list[tuple[str, str]]:
        pairs = (merge.split(" ", 1) for merge in self.get("merges", list, []))
        try:
            return [(left, right) for left, right in pairs]
        except ValueError:
            raise TokenizerLoadError(f"{self.name}: tokenizer.ggml.merges has an entry that is not a pair") from None


def _byte_level(vocabulary: _Vocabulary) -> RustTokenizer:
    name: str = vocabulary.get("pre", str, "default")
    kind = PRE_TOKENIZATIONS.get(name)
    if kind is None:
        raise TokenizerLoadError(
            f"{vocabulary.name}: how text is cut for tokenizer.ggml.pre = {name!r} is not known here; known are "
            f"{', '.join(sorted(PRE_TOKENIZATIONS))}. Pass the folder of the original tokenizer instead"
        )
    pipeline = _pipeline(vocabulary, vocabulary.merges(), ignore_merges=kind.ignore_merges)
    if kind.nfc:
        pipeline.normalizer = normalizers.NFC()
    pipeline.pre_tokenizer = kind.pre_tokenizer()
    pipeline.decoder = decoders.ByteLevel()
    vocabulary.set_boundaries(pipeline, kind.adds_bos)
    return pipeline


def _sentencepiece(vocabulary: _Vocabulary) -> RustTokenizer:
    unknown = vocabulary.token("unknown_token_id", 0)
    merges = vocabulary.merges() or _merges_by_score(vocabulary)
    pipeline = _pipeline(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    prefixed = vocabulary.get("add_space_prefix", bool, True)
    escape = normalizers.Replace(" ", _SPACE)
    pipeline.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), escape]) if prefixed else escape
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    pipeline.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)
    vocabulary.set_boundaries(pipeline, adds_bos=True)
    return pipeline


def _pipeline(vocabulary: _Vocabulary, merges: list[tuple[str, str]], **options: Any) -> RustTokenizer:
    try:
        return RustTokenizer(models.BPE(vocab=vocabulary.ids(), merges=merges, **options))
    except Exception as error:  # the library raises bare Exception
        raise TokenizerLoadError(f"{vocabulary.name} holds no usable vocabulary: {error}") from error


def _merges_by_score(vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """Every way to join two tokens into a third, the best-scored result first.

    SentencePiece's BPE joins, again and again, the neighbours whose result has the highest score (Kudo and Richardson
    2018, arXiv 1808.06226); a merge list in that order makes plain BPE do the same.
    """
    scores: list[float] = vocabulary.get("scores", list, [])
    if len(scores) != len(vocabulary.tokens):
        raise TokenizerLoadError(f"{vocabulary.name}: a 'llama' vocabulary needs merges or one score per token")
    ids = vocabulary.ids()
    ranked: list[tuple[float, int, int, tuple[str, str]]] = []
    for token, score, kind in zip(vocabulary.tokens, scores, vocabulary.types, strict=True):
        if kind != _NORMAL:
            continue
        for cut in range(1, len(token)):
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None:
                ranked.append((-score, left, right, (token[:cut], token[cut:])))
    ranked.sort()
    return [pair for *_, pair in ranked]


def _chat_templates(metadata: Mapping[str, GGUFValue]) -> dict[str, str]:
    """`tokenizer.chat_template` and its named variants `tokenizer.chat_template.<name>`."""
    key = "tokenizer.chat_template"
    return {
        name.removeprefix(key).removeprefix(".") or "default": value
        for name, value in metadata.items()
        if (name == key or name.startswith(key + ".")) and isinstance(value, str)
    }
