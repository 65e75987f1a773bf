"""Token objects as TGI's native API tells them: a token's text is what it adds to the text, not what it is alone."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from adapters.openai_logprobs import FLOOR
from adapters.tgi_types import NativeToken, PrefillToken
from engines.api import PromptDetails, TextDelta, TokenLogprob, TopLogprob

UNKNOWN_ID = -1


class TokenTexts:
    """One choice's tokens in order. Special tokens are told by name and add nothing to the text.

    A character that spans tokens belongs to the last of them, the ones before it are "": so the texts of the tokens
    that are not special, joined, are the generated text.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, delta: TextDelta) -> list[NativeToken]:
        """The tokens that a piece tells of. An engine that knows no log-probabilities tells the piece as one token."""
        if delta.logprobs:
            tokens = [self._token(token) for token in delta.logprobs]
            rest = self._decoder.decode(b"", True) if delta.finish is not None else ""  # of an unfinished character
            ordinary = next((token for token in reversed(tokens) if not token["special"]), tokens[-1])
            ordinary["text"] += rest
            return tokens
        if not delta.text and not delta.token_ids:
            return []
        ids = delta.token_ids or (UNKNOWN_ID,)
        texts = [""] * (len(ids) - 1) + [delta.text]
        return [
            {"id": token_id, "text": text, "logprob": None, "special": False}
            for token_id, text in zip(ids, texts, strict=True)
        ]

    def _token(self, token: TokenLogprob) -> NativeToken:
        text = token.token if token.special or not token.bytes else self._decoder.decode(token.bytes)
        return _native(token, text)


def cut_to(tokens: Sequence[NativeToken], num_excess_chars: int) -> None:
    """A stop string may end inside the last token: what stands behind it is not part of the text."""
    if num_excess_chars > 0 and tokens and len(tokens[-1]["text"]) > num_excess_chars:
        tokens[-1]["text"] = tokens[-1]["text"][:-num_excess_chars]


def num_chars(tokens: Iterable[NativeToken]) -> int:
    return sum(len(token["text"]) for token in tokens if not token["special"])


def top_tokens(token: TokenLogprob, count: int) -> list[NativeToken]:
    """The `count` likeliest tokens at this place, each by its own text."""
    return [_native(top, top.token) for top in token.top[:count]]


def prefill_tokens(prompt: PromptDetails | None) -> list[PrefillToken]:
    """The prompt's tokens; the first, which nothing predicts, has no log-probability."""
    if prompt is None or not prompt.logprobs:
        return []
    known = [token for token in prompt.logprobs if token is not None]
    first = prompt.text.encode("utf-8", "replace")
    first = first[: max(len(first) - sum(len(token.bytes) for token in known), 0)]
    tokens: list[PrefillToken] = []
    for token_id, token in zip(prompt.token_ids, prompt.logprobs, strict=True):
        text = first.decode("utf-8", "replace") if token is None else token.token
        tokens.append({"id": token_id, "text": text, "logprob": None if token is None else _finite(token.logprob)})
    return tokens


def _native(token: TokenLogprob | TopLogprob, text: str) -> NativeToken:
    return {"id": token.token_id, "text": text, "logprob": _finite(token.logprob), "special": token.special}


def _finite(logprob: float) -> float:
    """JSON has no infinity."""
    return max(logprob, FLOOR)
