from __future__ import annotations

import argparse
from typing import Any

import pytest

from config.settings import load_settings, setting_groups
from gateway.cli.arguments import add_settings, given_settings

FIELDS = {name: info for group in setting_groups() for name, info in group.fields.items()}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="headrace", allow_abbrev=False)
    add_settings(made)
    return made


def given(*arguments: str) -> dict[str, Any]:
    return given_settings(parser().parse_args(arguments))


def test_nothing_given_is_nothing():
    assert given() == {}


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_is_a_flag(name: str):
    flag = "--" + name.replace("_", "-")
    if FIELDS[name].annotation is bool:
        assert given(flag) == {name: True}
        assert given(flag.replace("--", "--no-", 1)) == {name: False}
    else:
        value = given(flag, "7")[name]
        assert value in ("7", ["7"])


def test_help_has_every_fields_description():
    text = " ".join(parser().format_help().split())
    missing = [name for name, info in FIELDS.items() if " ".join((info.description or "?").split()) not in text]
    assert missing == []


def test_model_is_an_argument_or_a_flag_but_not_both():
    assert given("x.gguf") == given("--model", "x.gguf") == {"model": "x.gguf"}
    with pytest.raises(ValueError, match="once"):
        given("x.gguf", "--model", "y.gguf")


def test_names_may_be_repeated_or_separated_by_commas():
    repeated = load_settings(given("--served-model-name", "a", "--served-model-name", "b"))
    separated = load_settings(given("--served-model-name", "a,b"))
    assert repeated.engines == separated.engines
    assert repeated.engines[0].served_model_name == ("a", "b")
