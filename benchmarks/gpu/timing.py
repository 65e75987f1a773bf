"""Timing on the GPU: CUDA graphs of many launches over rotating inputs.

A graph's replay leaves out what the host costs, and rotating inputs larger than the L2 cache leave out what it would
hide, as in a decode step where every layer has weights of its own.
"""

import statistics
from collections.abc import Callable, Sequence

import torch

L2_BYTES = 50 * 2**20


def graph_us(calls: Sequence[Callable[[], object]], launches: int = 24, replays: int = 5) -> float:
    """Median microseconds of one call, when `calls` are captured in turn until there are about `launches`."""
    rounds = max(1, round(launches / len(calls)))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        calls[0]()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    graph.replay()
    times = []
    for _ in range(replays):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    del graph
    return statistics.median(times) / (rounds * len(calls))


def num_copies(num_bytes: int, most: int = 24) -> int:
    """How many inputs of that size to rotate over so that none is still in L2 when its turn comes again."""
    return max(1, min(most, -(-3 * L2_BYTES // max(num_bytes, 1))))
