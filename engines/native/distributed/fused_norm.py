"""Sum over the ranks, residual addition and norm as one kernel, for as many tokens as it is the fastest for."""

from __future__ import annotations

import torch
from torch import Tensor

from engines.native.distributed.symmetric import SymmetricBuffer
from engines.native.kernels import triton_all_reduce


class FusedNorm:
    """Shared memory for the kernel. A collective call, and so is every call of it: all ranks take the same inputs."""

    def __init__(self, device: torch.device, rank: int, world_size: int, limit: int) -> None:
        num_bytes = triton_all_reduce.flag_bytes(world_size) + 2 * limit
        self._limit = limit
        self._buffer = SymmetricBuffer(num_bytes, device)
        self.peers = triton_all_reduce.peers_at(rank, self._buffer.addresses, num_bytes, device)

    def takes(self, x: Tensor) -> bool:
        """One token is not for this kernel: its norm goes along with the product behind it."""
        return x.shape[0] > 1 and x.nbytes <= self._limit and self._buffer.takes(x)

    def __call__(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(rms_norm(sum of the ranks' x + residual), sum + residual)."""
        return triton_all_reduce.all_reduce_add_rms_norm(x, residual, weight, eps, self.peers, pdl=True)
