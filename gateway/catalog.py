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
    """Names are read from the engines at once and again by `refresh`, for some learn theirs only when they start.

    `any_model`: a name that nobody claims stands for the first model there is.
    """

    def __init__(self, engines: Sequence[Engine], *, any_model: bool = False) -> None:
        self.engines = tuple(engines)
        self.any_model = any_model
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
        if name is None or (self.any_model and name not in self._served):
            name = self.default_name()
        try:
            return self._served[name]
        except KeyError:
            raise ModelNotFound(name) from None

    def default_name(self) -> str:
        """The first model's; "" where there is none."""
        return next(iter(self._served), "")

    def cards(self) -> list[ModelCard]:
        return [card for engine in self.engines for card in engine.models]
