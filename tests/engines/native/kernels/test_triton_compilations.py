"""No step after the warm-up makes Triton compile: the serving process would stand still for as long."""

import os
import subprocess
import sys


def test_no_batch_needs_a_kernel_that_the_warm_up_did_not() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.engines.native.kernels.gpuless_triton"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    num_at_start, *later = result.stdout.splitlines()
    assert int(num_at_start) > 0
    assert [line for line in later if line] == []
