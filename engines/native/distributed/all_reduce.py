"""Sums over the ranks, by the algorithm that measures best for the size. Knows torch's process group, no layers.

On CUDA small sums go through torch's symmetric memory, which every GPU of a host can read: one-shot (each rank reads
all others' whole input) for the smallest, two-shot (each rank sums its share, and reads the other shares' sums) above,
NCCL for the largest. benchmarks/gpu/all_reduce.py measures all of them. All can be captured in a CUDA graph. NVLink
multicast, which NCCL and symmetric memory could use, stays off.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from engines.native.distributed.member import NO_MULTICAST
from engines.native.distributed.symmetric import SymmetricBuffer


class AllReduce(Protocol):
    """Gives every rank the element-wise sum of the ranks' x, the same bits on each; x is lost."""

    @property
    def name(self) -> str: ...

    def __call__(self, x: Tensor) -> Tensor: ...


class ProcessGroupAllReduce:
    """torch's own collective: gloo or NCCL."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, x: Tensor) -> Tensor:
        dist.all_reduce(x)
        return x


class Limits(NamedTuple):
    """The largest inputs, in bytes, for which an algorithm is the fastest; beyond, it is NCCL."""

    one_shot: int
    two_shot: int
    fused: int  # with the addition and the norm that follow, see fused_norm.py


KIB, MIB = 1 << 10, 1 << 20
LIMITS: Mapping[int, Limits] = {
    2: Limits(one_shot=512 * KIB, two_shot=8 * MIB, fused=2 * MIB),
    4: Limits(one_shot=128 * KIB, two_shot=8 * MIB, fused=512 * KIB),
    8: Limits(one_shot=32 * KIB, two_shot=8 * MIB, fused=256 * KIB),
}
"""By number of ranks, on H100s joined by NVLink."""


def symmetric_limits(device: torch.device) -> Limits | None:
    """A collective call. None where the GPUs cannot read each other's memory, or nothing is known of so many."""
    limits = LIMITS.get(dist.get_world_size())
    if device.type == "cpu" or limits is None or not _peers_are_readable(device):
        return None
    assert os.environ.items() >= NO_MULTICAST.items(), "whoever starts the ranks turns multicast off"
    return limits


class SymmetricAllReduce:
    """One-shot, two-shot or NCCL, by size."""

    def __init__(self, device: torch.device, limits: Limits) -> None:
        self.name = "symmetric memory and NCCL"
        self._limits = limits
        self._buffer = SymmetricBuffer(limits.two_shot, device)

    def __call__(self, x: Tensor) -> Tensor:
        if x.nbytes > self._limits.two_shot or not self._buffer.takes(x):
            dist.all_reduce(x)
            return x
        return one_shot(x, self._buffer) if x.nbytes <= self._limits.one_shot else two_shot(x, self._buffer)


def one_shot(x: Tensor, buffer: SymmetricBuffer) -> Tensor:
    staging = buffer.like(x)
    return torch.ops.symm_mem.one_shot_all_reduce_copy(staging, x.view(-1), "sum", buffer.group_name).view(x.shape)


def two_shot(x: Tensor, buffer: SymmetricBuffer) -> Tensor:
    staging = buffer.like(x)
    staging.copy_(x.view(-1))
    # Not within the buffer, which the next sum overwrites: the first layer keeps its input as the residual.
    torch.ops.symm_mem.two_shot_all_reduce_out(staging, "sum", buffer.group_name, x.view(-1))
    return x


def _peers_are_readable(device: torch.device) -> bool:
    peers = range(dist.get_world_size())
    readable = all(torch.cuda.can_device_access_peer(device, peer) for peer in peers if peer != device.index)
    answer = torch.tensor([readable], device=device, dtype=torch.int32)
    dist.all_reduce(answer, dist.ReduceOp.MIN)
    return bool(answer.item())
