from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from config.example import example_toml
from config.server import ServerSection
from config.settings import SECTIONS, load_settings, setting_groups

EXAMPLE = Path(__file__).parents[2] / "config" / "example.toml"


def uncommented(text: str) -> str:
    return re.sub(r"(?m)^#(?=\w+ = |\[\[)", "", text)


def test_committed_file_is_what_the_fields_say():
    """`headrace config --example > config/example.toml` writes it anew."""
    assert EXAMPLE.read_text() == example_toml()


def test_example_loads_as_it_stands_and_is_the_defaults():
    loaded = load_settings({"config": str(EXAMPLE)})
    assert loaded.server == ServerSection()
    assert [engine.kind for engine in loaded.engines] == ["native"]


def test_every_field_appears_exactly_once():
    text = EXAMPLE.read_text().partition("# ---- Several engines")[0]
    keys = re.findall(r"(?m)^#?(\w+) = ", text)
    fields = [name for group in setting_groups() for name in group.fields if name != "config"]
    assert keys == fields


@pytest.mark.parametrize("kind", SECTIONS)
def test_each_engines_keys_load_when_uncommented(tmp_path: Path, kind: str):
    parts = re.split(r"(?m)^# ---- (.+) ----$", EXAMPLE.read_text())
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    text = "".join(uncommented(sections[part]) for part in ("Server", "TGI's native API", "Engine"))
    text += uncommented(sections[f"Engine {kind}"])
    path = tmp_path / "headrace.toml"
    path.write_text(text.replace('engine = "native"', f'engine = "{kind}"'))
    (engine,) = load_settings({"config": str(path)}).engines
    given = tomllib.loads(uncommented(sections[f"Engine {kind}"]))
    assert type(engine) is SECTIONS[kind]
    assert engine.model_fields_set >= set(given)


def test_tables_of_several_engines_load_when_uncommented(tmp_path: Path):
    path = tmp_path / "headrace.toml"
    path.write_text(uncommented(EXAMPLE.read_text().partition("# ---- Several engines ----")[2]))
    native, remote = load_settings({"config": str(path)}).engines
    assert (native.kind, remote.kind) == ("native", "remote")
    assert remote.served_model_name == ("large", "large-latest")
