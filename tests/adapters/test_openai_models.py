from __future__ import annotations

import json

from openai.types import Model

from adapters.openai_models import model_body, model_list_body
from engines.api import ModelCard

CARDS = [
    ModelCard(name="big", aliases=("large",), max_model_len=4096, created=7),
    ModelCard(name="far", owned_by="elsewhere"),
]


def test_the_list_has_every_name_with_its_canonical_one_as_root() -> None:
    listed = json.loads(model_list_body(CARDS))
    assert listed["object"] == "list"
    assert [(model["id"], model["root"]) for model in listed["data"]] == [
        ("big", "big"),
        ("large", "big"),
        ("far", "far"),
    ]
    assert [model["max_model_len"] for model in listed["data"]] == [4096, 4096, None]
    for model in listed["data"]:
        Model.model_validate(model, strict=True)


def test_no_models_is_an_empty_list() -> None:
    assert json.loads(model_list_body([])) == {"object": "list", "data": []}


def test_one_model_goes_by_the_name_it_was_asked_for() -> None:
    model = Model.model_validate(json.loads(model_body(CARDS[0], "large")), strict=True)
    assert (model.id, model.created, model.owned_by) == ("large", 7, "headrace")
