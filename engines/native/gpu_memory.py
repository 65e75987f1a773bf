"""How much of a GPU the KV cache may take: what is left once everything else has been measured.

Warming up makes the allocator reserve what the largest steps need; graphs are measured by capturing a few. So nothing
grows while requests are served.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from engines.errors import EngineUnavailable
from engines.native.chunk_graphs import DECODES, TOTALS, ChunkGraphs
from engines.native.cuda_graphs import DecodeGraphs, GraphContext, graph_sizes
from engines.native.scheduler import SchedulerLimits

_MARGIN_BYTES = 256 * 2**20  # graphs differ a little, and the allocator rounds up


def forget_peak() -> None:
    """Begin to measure: what loading and quantizing the weights took for a moment is not what steps need."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def workspace_bytes() -> int:
    """What steps allocate and give back, at its largest since forget_peak: the allocator will reserve it again."""
    torch.cuda.synchronize()
    return torch.cuda.max_memory_reserved() - torch.cuda.memory_allocated()


def graph_bytes(context: GraphContext, limits: SchedulerLimits) -> int:
    """What all graphs will take, from capturing the largest and one of the smallest and letting go of them again."""
    sizes = graph_sizes(limits.max_num_seqs)
    before = _used_bytes()
    decodes, chunks = DecodeGraphs(context), ChunkGraphs(context)
    decodes.capture(sizes[-1:])
    chunks.capture_largest(limits.max_num_batched_tokens)
    largest = _used_bytes()
    small = DecodeGraphs(context)
    small.capture(sizes[:2])
    each = (_used_bytes() - largest) // len(sizes[:2])
    del decodes, chunks, small
    num_graphs = len(sizes) + len(TOTALS) * len(DECODES)
    return largest - before + each * num_graphs + _MARGIN_BYTES


def gpu_budget_bytes(utilization: float, device: torch.device, reserve: int) -> int:
    """What gpu_memory_utilization allows beyond what is in use now, by anyone, and `reserve`."""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    budget = int(total * utilization) - (total - free) - reserve
    if budget <= 0:
        raise EngineUnavailable(
            f"gpu_memory_utilization: {utilization} of {total / 2**30:.0f} GiB is already in use by the weights, by "
            "the largest step and by other programs; raise it, lower max_num_batched_tokens, or pass a smaller model."
        )
    return budget


@contextmanager
def explain_out_of_memory(settings: str) -> Iterator[None]:
    """An allocation that fails inside becomes EngineUnavailable, which says what to lower."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        free, total = torch.cuda.mem_get_info()
        raise EngineUnavailable(
            f"The GPU is out of memory ({free / 2**30:.1f} of {total / 2**30:.0f} GiB free): lower {settings}, or "
            "pass a smaller model."
        ) from error


def _used_bytes() -> int:
    """Of the device; what the allocator reserves for nothing is given back first."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return total - free
