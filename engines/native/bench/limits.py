"""How fast this device copies and multiplies: the limits that every figure is held against.

Measured at the start of a run, before anything else uses the device. On CPU with the threads that torch has been given.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from engines.native.bench.figures import Limits

_GPU_COPY_BYTES, _CPU_COPY_BYTES = 2**31, 2**28  # far beyond the caches
_GPU_MATRIX, _CPU_MATRIX = 8192, 2048  # rows and columns
_REPEATS = 7
_GPU_CALLS = 8  # launched together, so that the host's time is hidden


def measure_limits(device: torch.device) -> Limits:
    """Medians of a few repetitions each; about a second."""
    limits = Limits(copy_bytes_per_s(device), matmul_flops_per_s(device))
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the KV cache is sized by what is free
    return limits


def copy_bytes_per_s(device: torch.device) -> float:
    """Bytes read plus bytes written a second by a copy within the device's memory."""
    size = _GPU_COPY_BYTES if device.type == "cuda" else _CPU_COPY_BYTES
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * size / _seconds(lambda: target.copy_(source), device)


def matmul_flops_per_s(device: torch.device) -> float:
    """Of a bfloat16 product of random matrices; on a CPU that multiplies float32 faster, of that."""
    if device.type == "cuda":
        return _matmul_rate(_GPU_MATRIX, torch.bfloat16, device)
    return max(_matmul_rate(_CPU_MATRIX, dtype, device) for dtype in (torch.bfloat16, torch.float32))


def _matmul_rate(size: int, dtype: torch.dtype, device: torch.device) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: a @ b, device)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Median of one call, after one to warm up."""
    call()
    measure = _gpu_seconds if device.type == "cuda" else _cpu_seconds
    return statistics.median(measure(call) for _ in range(_REPEATS))


def _gpu_seconds(call: Callable[[], object]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(_GPU_CALLS):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / _GPU_CALLS


def _cpu_seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
