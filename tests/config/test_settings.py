from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from config.engines import EchoSettings, NativeSettings, RemoteSettings
from config.server import ServerSection
from config.settings import SECTIONS, SettingsError, load_settings, setting_groups


@pytest.fixture(autouse=True)
def _no_settings_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("HEADRACE_"):
            monkeypatch.delenv(name)


def toml(tmp_path: Path, text: str) -> str:
    path = tmp_path / "headrace.toml"
    path.write_text(text)
    return str(path)


def problems(command_line: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load_settings(command_line)
    return caught.value.problems


def test_defaults_are_the_native_engine_on_loopback():
    loaded = load_settings({})
    assert loaded.server == ServerSection()
    assert loaded.engines == (NativeSettings(),)


def test_command_line_beats_environment_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = toml(tmp_path, 'port = 1\nhost = "file"\nmodel = "file"\nlog_level = "error"')
    monkeypatch.setenv("HEADRACE_PORT", "2")
    monkeypatch.setenv("HEADRACE_HOST", "environment")
    loaded = load_settings({"config": config, "port": "3"})
    assert (loaded.server.port, loaded.server.host, loaded.server.log_level) == (3, "environment", "error")
    assert isinstance(loaded.engines[0], NativeSettings)
    assert loaded.engines[0].model == "file"
    assert loaded.origins == {
        "config": "--config",
        "port": "--port",
        "host": "HEADRACE_HOST",
        "model": config,
        "log_level": config,
    }


def test_file_is_found_through_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HEADRACE_CONFIG", toml(tmp_path, "port = 9"))
    assert load_settings({}).server.port == 9


def test_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HEADRACE_PORT", "")
    loaded = load_settings({})
    assert loaded.server.port == 8080
    assert loaded.origins == {}


@pytest.mark.parametrize("kind", SECTIONS)
def test_every_engine_field_is_a_variable(kind: str, monkeypatch: pytest.MonkeyPatch):
    fields = {name: info for group in setting_groups() if group.kind == kind for name, info in group.fields.items()}
    monkeypatch.setenv("HEADRACE_ENGINE", kind)
    for name, info in fields.items():
        value = info.examples[0] if info.examples else info.default
        monkeypatch.setenv(f"HEADRACE_{name.upper()}", str(value))
    (engine,) = load_settings({}).engines
    assert type(engine) is SECTIONS[kind]
    assert engine.model_fields_set >= set(fields)


@pytest.mark.parametrize("given", ["a,b", " a , b ", ["a", "b"], ["a,b"]], ids=repr)
def test_names_may_be_a_list_or_separated_by_commas(given: object):
    assert load_settings({"served_model_name": given}).engines[0].served_model_name == ("a", "b")


def test_secret_comes_from_the_environment_and_is_not_printed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HEADRACE_UPSTREAM_API_KEY", "hush")
    (engine,) = load_settings({"engine": "remote", "upstream": "https://example.com/v1"}).engines
    assert isinstance(engine, RemoteSettings)
    assert engine.upstream_api_key is not None
    assert engine.upstream_api_key.get_secret_value() == "hush"
    assert "hush" not in repr(engine)


def test_engine_keeps_its_own_default_for_a_field_that_kinds_share():
    assert load_settings({"engine": "echo"}).engines == (EchoSettings(max_model_len=8192),)
    assert load_settings({"engine": "echo", "max_model_len": "7"}).engines == (EchoSettings(max_model_len=7),)


def test_several_engines_come_from_tables(tmp_path: Path):
    config = toml(
        tmp_path,
        '[[engines]]\nkind = "echo"\nserved_model_name = "a"\n'
        '[[engines]]\nkind = "remote"\nupstream = "http://example.com/v1"\nserved_model_name = ["b", "c"]',
    )
    first, second = load_settings({"config": config}).engines
    assert first == EchoSettings(served_model_name=("a",))
    assert isinstance(second, RemoteSettings)
    assert second.served_model_name == ("b", "c")


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_settings({}).server.port = 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prot = 1", "prot: unknown key in {path}. Did you mean port?"),
        ("config = 'x'", "config: unknown key in {path}."),
        ("port = 99999", "port: Input should be less than or equal to 65535 (got 99999 from {path})."),
        ("port = ", "config: {path} is not valid TOML: Invalid value (at end of document)."),
        (
            '[[engines]]\nkind = "echo"\ntoken_dely_s = 1',
            "engines[0].token_dely_s: unknown key in {path}. Did you mean token_delay_s?",
        ),
        ("[[engines]]\nmodel = 'x'", "engines[0]: needs kind = 'native' or 'remote' or 'echo'."),
        ('[[engines]]\nkind = "remote"', "engines[0].upstream: required by this engine."),
        (
            'model = "x"\nengine = "native"\n[[engines]]\nkind = "echo"',
            "engines: give either [[engines]] tables or engine, model, not both.",
        ),
    ],
    ids=lambda value: value if "=" in value else "",
)
def test_file_with_a_mistake_is_refused_in_one_line(tmp_path: Path, text: str, expected: str):
    path = toml(tmp_path, text)
    assert problems({"config": path}) == (expected.format(path=path),)


def test_missing_file_is_refused(tmp_path: Path):
    path = tmp_path / "none.toml"
    assert problems({"config": str(path)}) == (f"config: cannot read {path}: No such file or directory.",)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("HEADRACE_PROT", "1", "HEADRACE_PROT: unknown setting in the environment. Did you mean HEADRACE_PORT?"),
        ("headrace_prot", "1", "headrace_prot: unknown setting in the environment. Did you mean HEADRACE_PORT?"),
        (
            "HEADRACE_SERVICE_HOST",
            "10.0.0.1",
            "HEADRACE_SERVICE_HOST: set by Kubernetes for a service named headrace; "
            "set enableServiceLinks: false in the pod's spec.",
        ),
        (
            "HEADRACE_PORT",
            "x",
            "port: Input should be a valid integer, unable to parse string as an integer (got 'x' from HEADRACE_PORT).",
        ),
        ("HEADRACE_ENGINES", "[", "engines: HEADRACE_ENGINES is not valid JSON."),
        ("HEADRACE_UPSTREAM", "http://x/v1", "upstream: a setting of engine remote, but engine is native."),
    ],
    ids=lambda value: value,
)
def test_variable_with_a_mistake_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
):
    monkeypatch.setenv(name, value)
    assert problems({}) == (expected,)


def test_several_mistakes_are_told_at_once():
    assert len(problems({"port": "x", "max_model_len": "0", "device": "tpu"})) == 3


def test_required_field_says_how_to_give_it():
    assert problems({"engine": "remote"}) == (
        "upstream: required by this engine; give --upstream or HEADRACE_UPSTREAM.",
    )


def test_rejected_secret_is_not_printed():
    (problem,) = problems({"engine": "remote", "upstream": "http://x/v1", "upstream_api_key": 12345})
    assert "12345" not in problem
    assert problem.startswith("upstream_api_key: ")
