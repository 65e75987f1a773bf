from __future__ import annotations

import pytest

from engines.api import ModelCard
from engines.errors import ModelNotFound
from gateway.catalog import Catalog
from tests.gateway.scripted import ScriptedEngine


def test_name_and_aliases_lead_to_the_engine_and_its_canonical_card():
    first, second = ScriptedEngine(name="a", aliases=("b", "org/c")), ScriptedEngine(name="d")
    catalog = Catalog([first, second])
    for name in ("a", "b", "org/c"):
        assert catalog.resolve(name).engine is first
        assert catalog.resolve(name).card.name == "a"
    assert catalog.resolve("d").engine is second
    assert [card.name for card in catalog.cards()] == ["a", "d"]


@pytest.mark.parametrize("name", ["", "A", "a/", "missing"])
def test_unknown_name_is_not_found(name: str):
    with pytest.raises(ModelNotFound) as raised:
        Catalog([ScriptedEngine(name="a")]).resolve(name)
    assert raised.value.field == "model"


def test_no_name_is_the_first_model():
    assert Catalog([ScriptedEngine(name="a"), ScriptedEngine(name="b")]).resolve(None).card.name == "a"
    with pytest.raises(ModelNotFound):
        Catalog([]).resolve(None)


@pytest.mark.parametrize(
    "engines",
    [
        pytest.param([("a", ()), ("a", ())], id="two-names"),
        pytest.param([("a", ()), ("b", ("a",))], id="name-and-alias"),
        pytest.param([("a", ("a",))], id="own-alias"),
    ],
)
def test_name_claimed_twice_is_refused(engines: list[tuple[str, tuple[str, ...]]]):
    with pytest.raises(ValueError, match="'a' is claimed twice"):
        Catalog([ScriptedEngine(name=name, aliases=aliases) for name, aliases in engines])


def test_refresh_reads_the_names_that_an_engine_learned():
    class Learning(ScriptedEngine):
        cards: tuple[ModelCard, ...] = ()

        @property
        def models(self) -> tuple[ModelCard, ...]:
            return self.cards

    engine = Learning()
    catalog = Catalog([engine])
    engine.cards = (ModelCard(name="late"),)
    catalog.refresh()
    assert catalog.resolve("late").engine is engine
