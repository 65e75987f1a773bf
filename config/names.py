"""Lists of names, as a flag, a variable and a TOML file each write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, cast

from pydantic import BeforeValidator


def split_names(value: object) -> object:
    """`"a,b"` is how an environment variable or a flag writes `("a", "b")`; a repeated flag brings a list of those."""
    parts: object = [value] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        return value  # pydantic says what is wrong with it
    names: list[str] = []
    for part in cast("Sequence[object]", parts):
        if not isinstance(part, str):
            return value
        names += [name for name in map(str.strip, part.split(",")) if name]
    return names


Names = Annotated[tuple[str, ...], BeforeValidator(split_names)]
