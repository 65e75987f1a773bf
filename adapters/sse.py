"""Server-sent events: how bytes of JSON become frames. Knows neither protocols nor sockets."""

from __future__ import annotations

import msgspec

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


def data_frame(payload: object) -> bytes:
    """One event holding `payload` as JSON."""
    return b"data: " + _encode(payload) + b"\n\n"


def json_string(text: str) -> bytes:
    """`text` as a JSON string in UTF-8; a surrogate without its partner becomes U+FFFD, for UTF-8 cannot hold it."""
    try:
        return _encode(text)
    except UnicodeEncodeError:
        return _encode(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
