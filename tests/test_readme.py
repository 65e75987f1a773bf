"""The README does what it says: its snippets run as they stand, its commands and links exist."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.settings import load_settings
from tests.cli.process import environment, headrace, serving

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", README)
PYTHON = [text for language, text in BLOCKS if language == "python"]
SHELL = [text for language, text in BLOCKS if language == "sh"]
PORT = 8080  # the README's own


@pytest.fixture(scope="module")
def _served(smollm2_gguf: Path) -> Iterator[None]:
    """`headrace serve`, as `make serve` runs it."""
    assert smollm2_gguf.exists()  # in the cache: the server finds it there
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", PORT))
        except OSError:
            pytest.skip(f"port {PORT}, which the README names, is in use")
    with serving() as server:
        assert server.url == f"http://127.0.0.1:{PORT}"
        yield


def answered(command: list[str]) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_quick_start_is_two_commands():
    quick_start = README.partition("## Quick start")[2].partition("\n## ")[0]
    assert re.findall(r"(?ms)^```sh\n(.*?)^```$", quick_start) == ["make serve\n", "make test\n"]
    targets = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"(?m)^{target}:", targets) for target in ("serve", "test"))


@pytest.mark.usefixtures("_served")
def test_curl_snippets_are_answered():
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    whole, streamed = (text for text in SHELL if "curl" in text)
    answer = json.loads(answered(["sh", "-c", whole]))
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["content"]
    assert "curl -N" in streamed
    *events, end, last = answered(["sh", "-c", streamed]).split("\n\n")
    assert (end, last) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert len(chunks) > 3
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")


@pytest.mark.usefixtures("_served")
@pytest.mark.parametrize("snippet", PYTHON, ids=["openai", "langchain"])
def test_python_snippet_is_answered(snippet: str):
    answers = (answered([sys.executable, "-c", snippet]) for _ in range(5))  # sampled, and now and then a word or two
    assert any(len(answer.split()) > 3 for answer in answers)


def test_settings_snippet_loads(tmp_path: Path):
    (snippet,) = (text for language, text in BLOCKS if language == "toml")
    path = tmp_path / "headrace.toml"
    path.write_text(snippet)
    assert [engine.kind for engine in load_settings({"config": str(path)}).engines] == ["native", "remote"]


def test_commands_in_the_table_exist():
    commands = re.findall(r"(?m)^\| `headrace (\w+)", README)
    assert commands == ["serve", "launch", "chat", "batch", "bench", "config", "watermark", "version"]
    for command in commands:
        assert headrace(command, "--help").returncode == 0


def test_links_lead_somewhere():
    missing = [link for link in re.findall(r"\]\((?!http)([^)#]+)", README) if not (ROOT / link).exists()]
    assert missing == []


def test_everything_that_is_installed_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    wanted += project["optional-dependencies"]["native"]
    pinned = {_normal(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert {_normal(name) for name in wanted if not name.startswith("headrace")} - pinned == set()


def _normal(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[=<>;! ]", requirement)[0]).lower()


def test_changelog_names_this_version_or_what_is_unreleased():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(r"(?m)^## (\S+)", (ROOT / "CHANGELOG.md").read_text())
    assert headings[0] in ("Unreleased", version, f"[{version}]")
