from __future__ import annotations

from pathlib import Path

import pytest

from config.example import example_toml
from tests.cli.process import headrace


def test_help_names_every_command_and_shows_examples():
    shown = headrace("--help")
    assert shown.returncode == 0
    for words in ("serve", "chat", "config", "version", "examples:", "headrace serve --engine remote --upstream"):
        assert words in shown.stdout


def test_version_is_the_packages():
    from importlib import metadata

    try:
        version = metadata.version("headrace")
    except metadata.PackageNotFoundError:
        pytest.skip("not installed, run from a checkout")
    assert headrace("version").stdout == f"headrace {version}\n"


def test_example_is_printed():
    assert headrace("config", "--example").stdout == example_toml()


def test_config_shows_values_and_where_they_came_from(tmp_path: Path):
    path = tmp_path / "h.toml"
    path.write_text('log_level = "error"\nupstream = "http://example.com/v1"')
    shown = headrace(
        "config", "--engine", "remote", "--config", str(path), HEADRACE_PORT="99", HEADRACE_UPSTREAM_API_KEY="hush"
    )
    rows = {line.split()[0]: line.split()[1:] for line in shown.stdout.splitlines()}
    assert rows["port"] == ["99", "HEADRACE_PORT"]
    assert rows["engine"] == ["remote", "--engine"]
    assert rows["host"] == ["127.0.0.1", "default"]
    assert rows["log_level"][0] == "error"
    assert rows["upstream_api_key"][0] == "(hidden)"
    assert "hush" not in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["serve", "--prot", "1"], "headrace serve: error: unknown argument --prot; did you mean --port?"),
        (["serve", "--port=x"], "(got 'x' from --port)."),
        (["serve", "--device", "tpu"], "device: Input should be 'auto', 'cpu' or 'cuda' (got 'tpu' from --device)."),
        (["serve", "--max-num", "1"], "unknown argument --max-num; did you mean --max-num-seqs?"),
        (["serve", "a", "--model", "b"], "give the model once: as MODEL or as --model"),
        (["serve", "--config", "/none.toml"], "config: cannot read /none.toml: No such file or directory."),
        (["sevre"], "invalid choice: 'sevre'"),
        ([], "required: COMMAND"),
    ],
    ids=" ".join,
)
def test_mistake_on_the_command_line_is_one_line_and_exit_code_2(arguments: list[str], expected: str):
    ended = headrace(*arguments)
    assert ended.returncode == 2
    assert expected in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_unknown_variable_ends_with_exit_code_2():
    ended = headrace("serve", HEADRACE_PROT="1")
    assert ended.returncode == 2
    assert ended.stderr == (
        "headrace: error: HEADRACE_PROT: unknown setting in the environment. Did you mean HEADRACE_PORT?\n"
    )
