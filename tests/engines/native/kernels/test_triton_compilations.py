"""Kernels compile for a GPU, and all of them during the warm-up: a serving process would stand still for as long."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_no_batch_needs_a_kernel_that_the_warm_up_did_not() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.engines.native.kernels.gpuless_triton"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    num_at_start, *later = result.stdout.splitlines()
    assert int(num_at_start) > 0
    assert [line for line in later if line] == []


def test_quantized_products_compile_for_a_gpu_and_fit_it(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-m", "tests.engines.native.kernels.gpuless_compile"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    kernels = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(kernels) == 24
    for kernel in kernels:
        assert kernel["shared"] <= 227 * 1024, kernel
        assert kernel["spills"] == 0, kernel
        assert kernel["shared_stores"] <= 10, kernel  # weights are made in the registers that they are multiplied from
        if "gemv" in kernel["name"]:
            assert kernel["moves"] <= 50, kernel  # of a table's bytes not one for each look-up
            # A thread's chunk of a row and its columns of x come in 16 bytes, and nothing but sums is exchanged.
            assert kernel["wide_loads"] >= 8 + 4, kernel
            assert kernel["shared"] <= 512, kernel
        # Codes, scales and x are copied ahead of the step that needs them.
        elif not kernel["name"].startswith("feedback") and "dequantize" not in kernel["name"]:
            assert kernel["async_copies"] >= 6, kernel
