"""`headrace config`: the settings that `headrace serve` would run with, and where each came from, secrets hidden."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, SecretStr
from rich.console import Console
from rich.table import Table

from config.explain import DEFAULT
from config.settings import Loaded


def show_config(loaded: Loaded, console: Console) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("setting", "value", "from"):
        table.add_column(heading, overflow="fold")
    for name, value, origin in rows(loaded):
        table.add_row(name, value, origin, style="dim" if origin == DEFAULT else None)
    console.print(table)


def rows(loaded: Loaded) -> Iterator[tuple[str, str, str]]:
    """(setting, value, origin), the server's first."""
    yield from _section(loaded.server, "", loaded)
    several = len(loaded.engines) > 1 or "engines" in loaded.origins
    for place, engine in enumerate(loaded.engines):
        yield from _section(engine, f"engines[{place}]." if several else "", loaded)


def _section(section: BaseModel, prefix: str, loaded: Loaded) -> Iterator[tuple[str, str, str]]:
    for name in type(section).model_fields:
        key = "engines" if prefix else "engine" if name == "kind" else name
        given = name in section.model_fields_set if prefix else key in loaded.origins
        yield (
            prefix + (name if prefix else key),
            _shown(getattr(section, name)),
            loaded.origins[key] if given else DEFAULT,
        )


def _shown(value: object) -> str:
    if isinstance(value, SecretStr):
        return "(hidden)"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return "" if value is None else str(value)
