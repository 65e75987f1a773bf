"""Sums over the ranks, by the algorithm that measures best for the size. Knows torch's process group, no layers.

On CUDA our own kernel sums up to some size, each rank writing its whole input into memory of the others (PeerSums).
Above, torch's two-shot over the same kind of memory (each rank sums its share, and reads the other shares' sums), and
NCCL for the largest. benchmarks/gpu/all_reduce.py measures all of them. All can be captured in a CUDA graph. NVLink
multicast, which NCCL and symmetric memory could use, stays off.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from engines.native.distributed.member import NO_MULTICAST
from engines.native.distributed.symmetric import SymmetricBuffer

if TYPE_CHECKING:
    from engines.native.distributed.peer_sums import PeerSums


class AllReduce(Protocol):
    """Element-wise sums, the same bits on each rank; a summed x is lost. Every call is collective."""

    @property
    def name(self) -> str: ...

    def sum(self, x: Tensor) -> Tensor: ...

    def sum_and_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, /) -> tuple[Tensor, Tensor] | None:
        """(rms_norm(t), t) of t = sum(x) + residual in one kernel; None where there is none for x, which is left."""
        ...


class ProcessGroupAllReduce:
    """torch's own collective: gloo or NCCL."""

    def __init__(self, name: str) -> None:
        self.name = name

    def sum(self, x: Tensor) -> Tensor:
        dist.all_reduce(x)
        return x

    def sum_and_norm(self, *_: Tensor | float) -> None:
        return None


class Limits(NamedTuple):
    """The largest inputs, in bytes, for which an algorithm is the fastest; beyond, it is NCCL."""

    peer: int
    two_shot: int
    fused: int  # sum, addition and norm in one kernel; at most `peer`


KIB, MIB = 1 << 10, 1 << 20
LIMITS: Mapping[int, Limits] = {
    2: Limits(peer=24 * MIB, two_shot=0, fused=24 * MIB),
    4: Limits(peer=512 * KIB, two_shot=8 * MIB, fused=512 * KIB),
    8: Limits(peer=256 * KIB, two_shot=8 * MIB, fused=256 * KIB),
}
"""By number of ranks, on H100s joined by NVLink; measured for 2, for more what torch's algorithms suggest."""


def symmetric_limits(device: torch.device) -> Limits | None:
    """A collective call. None where the GPUs cannot read each other's memory, or nothing is known of so many."""
    limits = LIMITS.get(dist.get_world_size())
    if device.type == "cpu" or limits is None or importlib.util.find_spec("triton") is None:
        return None
    if not _peers_are_readable(device):
        return None
    assert os.environ.items() >= NO_MULTICAST.items(), "whoever starts the ranks turns multicast off"
    return limits


class SymmetricAllReduce:
    """Our kernel, two-shot or NCCL, by size. fused: whether norms may go along."""

    name = "symmetric memory and NCCL"

    def __init__(self, device: torch.device, rank: int, limits: Limits, *, fused: bool) -> None:
        from engines.native.distributed.peer_sums import PeerSums

        self._fused_limit = limits.fused if fused else 0
        self._peers: PeerSums = PeerSums(device, rank, dist.get_world_size(), limits.peer)
        self._two_shot_limit = limits.two_shot
        self._staging = SymmetricBuffer(limits.two_shot, device) if limits.two_shot else None

    def sum(self, x: Tensor) -> Tensor:
        if self._peers.takes(x):
            return self._peers.sum(x)
        if self._staging is not None and x.nbytes <= self._two_shot_limit and self._staging.takes(x):
            return two_shot(x, self._staging)
        dist.all_reduce(x)
        return x

    def sum_and_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, /) -> tuple[Tensor, Tensor] | None:
        """One token is not for this kernel: its norm goes along with the product behind it."""
        if x.shape[0] == 1 or x.nbytes > self._fused_limit or not self._peers.takes(x):
            return None
        return self._peers.sum_and_norm(x, residual, weight, eps)


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
