"""Which engine answers to which model name. Knows names and engines, not what either does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from engines.api import Engine, ModelCard
from engines.errors import ModelNotFound


class Served(NamedTuple):
    """A model and the engine behind it."""

    engine: Engine
    card: ModelCard


class Catalog:
    """Names are read from the engines at once and again by `refresh`, for some learn theirs only when they start."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = tuple(engines)
        self._served: dict[str, Served] = {}
        self.refresh()

    def refresh(self) -> None:
        """Raises ValueError when two models claim one name."""
        served: dict[str, Served] = {}
        for engine in self.engines:
            for card in engine.models:
                for name in (card.name, *card.aliases):
                    if name in served:
                        raise ValueError(f"The model name '{name}' is claimed twice; names and aliases must be unique.")
                    served[name] = Served(engine, card)
        self._served = served

    def resolve(self, name: str | None) -> Served:
        """Raises ModelNotFound. None, where a protocol lets the client name no model, is the first there is."""
        if name is None:
            name = next(iter(self._served), "")
        try:
            return self._served[name]
        except KeyError:
            raise ModelNotFound(name) from None

    def cards(self) -> list[ModelCard]:
        return [card for engine in self.engines for card in engine.models]
