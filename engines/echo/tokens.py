"""Text to tokens, tokens to ids and back, without a vocabulary: an id says its token by itself.

A token is a run of at most four printable ASCII characters (a space may only lead), or any other single character. An
id below 0x110000 is a code point, above it base-96 digits.
"""

from __future__ import annotations

import re

from engines.errors import InvalidRequest

_TOKEN = re.compile(r" [!-~]{1,3}|[!-~]{1,4}|.", re.DOTALL)
_MAX_TOKEN_CHARS = 4
_FIRST_RUN_ID = 0x110000  # one past the last code point
_SURROGATES = range(0xD800, 0xE000)


def split_tokens(text: str) -> list[str]:
    """The tokens of `text`; joined they are `text` again."""
    return _TOKEN.findall(text)


def token_id(token: str) -> int:
    """The id that stands for `token` in every process, below 2**27."""
    if len(token) == 1:
        return ord(token)
    run = 0
    for character in token:
        run = run * 96 + ord(character) - 31  # digits 1..95, so that runs of different lengths never collide
    return _FIRST_RUN_ID + run


def token_text(token_id: int) -> str:
    """Inverse of `token_id`. Raises InvalidRequest for an id that stands for nothing."""
    if 0 <= token_id < _FIRST_RUN_ID and token_id not in _SURROGATES:
        return chr(token_id)
    characters: list[str] = []
    run = token_id - _FIRST_RUN_ID
    while run > 0 and len(characters) <= _MAX_TOKEN_CHARS:
        run, digit = divmod(run, 96)
        characters.append(chr(digit + 31))
    text = "".join(reversed(characters))
    if not 2 <= len(text) <= _MAX_TOKEN_CHARS or "\x1f" in text:
        raise InvalidRequest(f"Token id {token_id} is not in this model's vocabulary.", field="prompt")
    return text
