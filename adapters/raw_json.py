"""What can be told of a JSON body by its top-level members, without reading what is in them. Knows no protocol."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


def with_model(body: bytes, default_model: Callable[[], str]) -> bytes:
    """The body, with a model named."""
    fields = raw_fields(body)
    if fields is None or "model" in fields:
        return body  # whoever parses it says what is wrong
    return msgspec.json.encode({"model": default_model(), **fields})


def says_stream(body: bytes) -> bool:
    """Whether a body, valid otherwise or not, asks for a stream."""
    fields = raw_fields(body) or {}
    return bytes(fields.get("stream", b"")) == b"true"


def keys_of(body: bytes) -> frozenset[str]:
    """The top-level keys of a JSON object; none of anything else."""
    return frozenset(raw_fields(body) or ())


_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def raw_fields(body: bytes) -> dict[str, msgspec.Raw] | None:
    """The members of a JSON object, each undecoded; None of anything else."""
    try:
        return _decode_fields(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
