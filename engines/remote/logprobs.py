"""Log-probabilities out of an upstream's two shapes of them. Token ids are -1: neither shape tells them."""

from __future__ import annotations

import msgspec

from engines.api import TokenLogprob, TopLogprob
from engines.remote.wire import ChatTokenLogprob, ChatTopLogprob, decode_chat_logprobs, decode_completion_logprobs

UNKNOWN_ID = -1


def chat_logprobs(raw: msgspec.Raw, alternatives: int) -> tuple[TokenLogprob, ...]:
    """`{"content": [{"token", "logprob", "bytes", "top_logprobs": [...]}]}`."""
    logprobs = decode_chat_logprobs(raw) if bytes(raw) else None
    if logprobs is None:
        return ()
    return tuple(
        TokenLogprob(
            UNKNOWN_ID,
            token.token,
            _bytes(token),
            token.logprob,
            tuple(
                TopLogprob(UNKNOWN_ID, top.token, _bytes(top), top.logprob) for top in token.top_logprobs[:alternatives]
            ),
        )
        for token in logprobs.content or ()
    )


def _bytes(token: ChatTokenLogprob | ChatTopLogprob) -> bytes:
    return _utf8(token.token) if token.bytes is None else bytes(token.bytes)


def completion_logprobs(raw: msgspec.Raw, alternatives: int) -> tuple[TokenLogprob, ...]:
    """`{"tokens": [...], "token_logprobs": [...], "top_logprobs": [{token: logprob}, ...]}`, one entry a token."""
    logprobs = decode_completion_logprobs(raw) if bytes(raw) else None
    if logprobs is None:
        return ()
    tops = logprobs.top_logprobs or [None] * len(logprobs.tokens)
    return tuple(
        TokenLogprob(UNKNOWN_ID, token, _utf8(token), logprob or 0.0, _ranked(top or {}, alternatives))
        for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, tops, strict=False)
    )


def _ranked(top: dict[str, float], alternatives: int) -> tuple[TopLogprob, ...]:
    ranked = sorted(top.items(), key=lambda item: item[1], reverse=True)[:alternatives]
    return tuple(TopLogprob(UNKNOWN_ID, token, _utf8(token), logprob) for token, logprob in ranked)


def _utf8(token: str) -> bytes:
    return token.encode(errors="replace")
