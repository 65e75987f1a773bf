"""The device that an engine's settings name: chosen, given its threads on a CPU, and called by name."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from config.engines import NativeSettings
from engines.errors import EngineUnavailable


def prepare_device(section: NativeSettings, rank: int = 0) -> torch.device:
    """The device that these settings name for a rank; on CPU, torch is given its threads."""
    if section.device == "cuda" and not torch.cuda.is_available():
        raise EngineUnavailable("device is 'cuda', but torch sees no CUDA GPU; pass --device cpu or auto.")
    if section.device == "cpu" or not torch.cuda.is_available():
        torch.set_num_threads(max(1, (section.cpu_threads or _physical_cores()) // section.tensor_parallel_size))
        return torch.device("cpu")
    if section.tensor_parallel_size == 1:
        return torch.device("cuda", torch.cuda.current_device())
    if section.tensor_parallel_size > torch.cuda.device_count():
        raise EngineUnavailable(
            f"tensor_parallel_size is {section.tensor_parallel_size}, but torch sees {torch.cuda.device_count()} GPUs.",
            field="tensor_parallel_size",
        )
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)


def device_name(device: torch.device, num_threads: int) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {num_threads} threads"


def _physical_cores() -> int:
    """Cores this process may use; hyper-threads share the vector units, so they do not count."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    siblings = Path("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list")
    try:
        threads_per_core = len(siblings.read_text().replace("-", ",").split(","))
    except OSError:
        threads_per_core = 1
    return max(1, usable // threads_per_core)
