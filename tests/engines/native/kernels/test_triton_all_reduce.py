"""The all-reduce kernel, with its meeting of the ranks, across real processes."""

import multiprocessing

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from engines.native.kernels import triton_all_reduce
from tests.engines.native.kernels.conftest import HAS_GPU
from tests.engines.native.kernels.rank_processes import HIDDEN, ROWS, play


@pytest.mark.skipif(HAS_GPU, reason="interpreted only: on GPUs benchmarks/gpu/all_reduce.py checks the answers")
@pytest.mark.parametrize("world_size", [3])
def test_ranks_get_the_sum_and_its_norm_call_after_call(world_size: int) -> None:
    num_bytes = triton_all_reduce.shared_bytes(world_size, max(ROWS) * HIDDEN * 4)
    memories = [torch.zeros(num_bytes, dtype=torch.uint8).share_memory_() for _ in range(world_size)]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=play, args=(rank, memories, results)) for rank in range(world_size)]
    for process in processes:
        process.start()
    answers = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert [rank for rank, _, _ in answers] == list(range(world_size))
    assert all(error < 1e-4 for _, error, _ in answers)
    assert [calls for _, _, calls in answers] == [2 * len(ROWS)] * world_size
