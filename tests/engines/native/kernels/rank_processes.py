"""Processes that play ranks on the CPU: each runs the all-reduce kernel in Triton's interpreter on shared memory."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch

from engines.native.kernels import reference

HIDDEN = 72  # no power of 2
MAX_BLOCKS = 4
ROWS = (1, 3, 5, 2, 19, 8)  # one, several, more than blocks, again few, and several times two rows a block
EPS = 1e-5


def play(rank: int, memories: list[torch.Tensor], results: Any) -> None:
    """Sums and sums with norms in turn, on inputs that every rank knows; puts (rank, errors, calls counted)."""
    os.environ["TRITON_INTERPRET"] = "1"
    warnings.simplefilter("ignore")  # Triton's interpreter on recent numpy
    from engines.native.kernels import triton_all_reduce

    triton_all_reduce.MAX_BLOCKS = MAX_BLOCKS
    addresses = [memory.data_ptr() for memory in memories]
    peers = triton_all_reduce.peers_at(rank, addresses, memories[0].numel(), torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    errors: list[float] = []
    for rows in ROWS:
        summands = torch.randn(len(memories), rows, HIDDEN, generator=generator)
        residual, weight = (torch.randn(*shape, generator=generator) for shape in ((rows, HIDDEN), (HIDDEN,)))
        total = triton_all_reduce.all_reduce(summands[rank].clone(), peers)
        got = triton_all_reduce.all_reduce_add_rms_norm(summands[rank].clone(), residual, weight, EPS, peers)
        expected = reference.add_rms_norm(summands.sum(0), residual, weight, EPS)
        for value, truth in ((total, summands.sum(0)), *zip(got, expected, strict=True)):
            errors.append(float((value - truth).abs().max()))
    results.put((rank, max(errors), int(peers.state[0])))
