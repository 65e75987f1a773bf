"""Log-probabilities in the three shapes that OpenAI-compatible clients read: chat, completions and prompt.

All are natural logarithms under the model's own distribution. JSON has no infinity, so nothing is below `FLOOR`, the
value that OpenAI uses for "very unlikely".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from typing_extensions import TypedDict

from engines.api import PromptDetails, TokenLogprob, TopLogprob

FLOOR = -9999.0


def named_by_id(token: TokenLogprob) -> TokenLogprob:
    """With `token_id:5` in place of a token's text, as vLLM's clients may ask, for texts that JSON cannot hold."""
    top = tuple(replace(other, token=f"token_id:{other.token_id}") for other in token.top)
    return replace(token, token=f"token_id:{token.token_id}", top=top)


# --- chat -------------------------------------------------------------------------------------------------------------


class ChatTopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(ChatTopLogprob):
    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(TypedDict):
    content: list[ChatTokenLogprob]
    refusal: None


def chat_logprobs(tokens: Iterable[TokenLogprob], num_top: int) -> ChatLogprobs:
    """`num_top`: alternatives that the client asked for, 0 to 20."""
    return {"content": [_chat_token(token, num_top) for token in tokens], "refusal": None}


def _chat_token(token: TokenLogprob, num_top: int) -> ChatTokenLogprob:
    return {
        "token": token.token,
        "logprob": max(token.logprob, FLOOR),
        "bytes": list(token.bytes),
        "top_logprobs": [
            {"token": top.token, "logprob": max(top.logprob, FLOOR), "bytes": list(top.bytes)}
            for top in token.top[:num_top]
        ],
    }


# --- completions ------------------------------------------------------------------------------------------------------


class CompletionLogprobs(TypedDict):
    """Parallel lists, one entry a token; None for the first token of an echoed prompt, which nothing precedes."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionLogprobsBuilder:
    """One choice's logprobs, piece by piece: `text_offset` counts characters of all text before a token."""

    def __init__(self, num_top: int) -> None:
        self._num_top = num_top
        self._offset = 0

    def prompt(self, prompt: PromptDetails) -> CompletionLogprobs:
        """The echoed prompt. Its first token has no logprob, so its text is what the others leave of the prompt's."""
        logprobs = prompt.logprobs or ()
        known = sum(_num_chars(token) for token in logprobs if token is not None)
        head = prompt.text[: max(0, len(prompt.text) - known)]
        pieces = _empty()
        for token in logprobs:
            if token is None:
                self._append(pieces, head, len(head), None, None)
            else:
                self._append_token(pieces, token)
        return pieces

    def generated(self, tokens: Iterable[TokenLogprob]) -> CompletionLogprobs:
        pieces = _empty()
        for token in tokens:
            self._append_token(pieces, token)
        return pieces

    def _append_token(self, pieces: CompletionLogprobs, token: TokenLogprob) -> None:
        chosen = max(token.logprob, FLOOR)
        # The chosen token is always among them. Tokens of the same text share a key: the most likely one keeps it.
        top = {token.token: chosen}
        for alternative in token.top[: self._num_top]:
            if alternative.token_id != token.token_id:
                top.setdefault(alternative.token, max(alternative.logprob, FLOOR))
        self._append(pieces, token.token, _num_chars(token), chosen, top)

    def _append(
        self, pieces: CompletionLogprobs, text: str, num_chars: int, chosen: float | None, top: dict[str, float] | None
    ) -> None:
        pieces["tokens"].append(text)
        pieces["token_logprobs"].append(chosen)
        pieces["top_logprobs"].append(top)
        pieces["text_offset"].append(self._offset)
        self._offset += num_chars


def _empty() -> CompletionLogprobs:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def joined(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    return {
        "tokens": first["tokens"] + second["tokens"],
        "token_logprobs": first["token_logprobs"] + second["token_logprobs"],
        "top_logprobs": first["top_logprobs"] + second["top_logprobs"],
        "text_offset": first["text_offset"] + second["text_offset"],
    }


def _num_chars(token: TokenLogprob) -> int:
    """Characters that begin in this token: a token of continuation bytes alone finishes a character begun before it."""
    if not token.bytes:
        return len(token.token)
    return sum(byte & 0xC0 != 0x80 for byte in token.bytes)


def mean_logprob(tokens: Sequence[TokenLogprob]) -> float:
    """By which `best_of` ranks choices; an empty choice ranks last."""
    return sum(token.logprob for token in tokens) / len(tokens) if tokens else -float("inf")


# --- prompt, as vLLM returns it ---------------------------------------------------------------------------------------


class PromptLogprob(TypedDict):
    """`rank` counts from 1; None where the token is not among the alternatives that were asked for."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""One entry a prompt token, by token id; None for the first token."""


def prompt_logprobs(prompt: PromptDetails, num_top: int) -> PromptLogprobs:
    return [token and _prompt_token(token, num_top) for token in prompt.logprobs or ()]


def _prompt_token(token: TokenLogprob, num_top: int) -> dict[str, PromptLogprob]:
    ranked = {str(top.token_id): _entry(top, rank) for rank, top in enumerate(token.top[:num_top], start=1)}
    return {str(token.token_id): _entry(token, None)} | ranked


def _entry(token: TokenLogprob | TopLogprob, rank: int | None) -> PromptLogprob:
    return {"logprob": max(token.logprob, FLOOR), "rank": rank, "decoded_token": token.token}
