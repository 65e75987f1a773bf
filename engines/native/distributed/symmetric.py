"""Memory of this rank's GPU that every GPU of the host can read and write, from torch's symmetric memory."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

_DTYPES = (torch.bfloat16, torch.float32)  # what torch's symmetric-memory sums know
_ALIGNMENT = 16


class SymmetricBuffer:
    """`num_bytes` zeros on each rank. A collective call; addresses[r] is rank r's buffer as this GPU sees it."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        from torch.distributed import _symmetric_memory as symmetric_memory

        group = dist.group.WORLD
        assert group is not None
        self.group_name: str = group.group_name
        self.memory = symmetric_memory.empty(num_bytes, dtype=torch.uint8, device=device)
        self.memory.zero_()
        self._handle = symmetric_memory.rendezvous(self.memory, group)
        self.addresses: list[int] = list(self._handle.buffer_ptrs)
        torch.cuda.synchronize(device)
        dist.barrier()  # nobody writes into a buffer that is still being zeroed

    def takes(self, x: Tensor) -> bool:
        return x.dtype in _DTYPES and x.nbytes % _ALIGNMENT == 0 and x.is_contiguous()

    def like(self, x: Tensor) -> Tensor:
        """The beginning of this rank's buffer as [x.numel()] of x's dtype."""
        return self.memory[: x.nbytes].view(x.dtype)
