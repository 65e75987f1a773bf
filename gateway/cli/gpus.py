"""How many NVIDIA GPUs a process may use, by what its environment says. Imports nothing that would initialize them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping


def visible_gpus(environment: Mapping[str, str]) -> int:
    """CUDA_VISIBLE_DEVICES decides, then NVIDIA_VISIBLE_DEVICES; else, and for "all", as many as there are."""
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        value = environment.get(name, "")
        if value in ("none", "-1"):
            return 0
        if value and value not in ("all", "void"):
            return len([device for device in value.split(",") if device.strip()])
    return _installed_gpus()


def _installed_gpus() -> int:
    """0 where the driver's own tool is missing or fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())
