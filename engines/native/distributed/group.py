"""What the ranks of a split model compute together: sums, gathers, agreement. One object per process.

Owns the torch process group: gloo on CPU, NCCL on CUDA. Which algorithm sums, by size, is all_reduce.py's business.
Knows no layers and no scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from engines.errors import EngineUnavailable
from engines.native.distributed.all_reduce import (
    AllReduce,
    ProcessGroupAllReduce,
    SymmetricAllReduce,
    symmetric_limits,
)
from engines.native.distributed.member import Member
from engines.native.layers.context import Shard

_all_gather: Callable[[Tensor, Tensor], object] = (
    dist.all_gather_single
    if hasattr(dist, "all_gather_single")
    else dist.all_gather_into_tensor  # torch 2.12 and before
)
_TIMEOUT = timedelta(hours=1)  # ranks load at their own pace; who dies or hangs is noticed by those who watch


class RankGroup:
    """The ranks as one of them sees them. Every method is to be called by all ranks, in the same order."""

    def __init__(self, member: Member, device: torch.device, *, batch_invariant: bool = False) -> None:
        """batch_invariant: a sum's bits must not depend on its size. Raises EngineUnavailable where they would."""
        if batch_invariant and member.world_size > 2:  # two summands have one sum, in whatever order
            raise EngineUnavailable(
                f"batch_invariant: over {member.world_size} ranks sums depend on the batch; tensor_parallel_size may "
                "be at most 2 with it.",
                field="batch_invariant",
            )
        self.shard = Shard(member.rank, member.world_size)
        store = dist.FileStore(str(member.meeting), member.world_size)  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=member.rank,
            world_size=member.world_size,
            timeout=_TIMEOUT,
            device_id=device if device.type == "cuda" else None,
        )
        self._device = device
        self._all_reduce: AllReduce = ProcessGroupAllReduce("NCCL" if device.type == "cuda" else "gloo")
        limits = symmetric_limits(device)
        if limits is not None:
            self._all_reduce = SymmetricAllReduce(device, member.rank, limits, fused=not batch_invariant)

    @property
    def all_reduce_name(self) -> str:
        return self._all_reduce.name

    def sum(self, x: Tensor) -> Tensor:
        """Element-wise over the ranks, the same bits on each of them; x is lost."""
        return self._all_reduce.sum(x)

    def sum_and_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor] | None:
        """(rms_norm(t), t) of t = sum(x) + residual in one kernel; None where there is none for x, which is left."""
        return self._all_reduce.sum_and_norm(x, residual, weight, eps)

    def gather(self, x: Tensor) -> Tensor:
        """[world_size, *x.shape], rank r's x at r."""
        gathered = x.new_empty((self.shard.world_size, *x.shape))
        _all_gather(gathered.view(-1), x.contiguous().view(-1))
        return gathered

    def agree(self, x: Tensor) -> None:
        """Rank 0's x, in place, on every rank."""
        dist.broadcast(x, 0)

    def agree_on(self, numbers: Sequence[float]) -> list[float]:
        """Rank 0's numbers."""
        values = torch.tensor(numbers, dtype=torch.float64, device=self._device)
        dist.broadcast(values, 0)
        return values.tolist()

    def minimum(self, number: int) -> int:
        """The smallest of the ranks' numbers."""
        value = torch.tensor([number], dtype=torch.int64, device=self._device)
        dist.all_reduce(value, dist.ReduceOp.MIN)
        return int(value.item())

    def close(self) -> None:
        dist.destroy_process_group()
