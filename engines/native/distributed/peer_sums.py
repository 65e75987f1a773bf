"""Sums over ranks whose GPUs read each other's memory, by our kernel: alone, or with addition and norm behind them."""

from __future__ import annotations

import torch
from torch import Tensor

from engines.native.distributed.symmetric import SymmetricBuffer
from engines.native.kernels import triton_all_reduce


class PeerSums:
    """Shared memory for the kernel, for up to `num_bytes` at once. Making it and every call of it are collective."""

    def __init__(self, device: torch.device, rank: int, world_size: int, num_bytes: int) -> None:
        shared_bytes = triton_all_reduce.shared_bytes(world_size, num_bytes)
        self._buffer = SymmetricBuffer(shared_bytes, device)
        self.peers = triton_all_reduce.peers_at(rank, self._buffer.addresses, shared_bytes, device)

    def takes(self, x: Tensor) -> bool:
        return x.nbytes <= self.peers.slot_bytes and self._buffer.takes(x)

    def sum(self, x: Tensor) -> Tensor:
        return triton_all_reduce.all_reduce(x, self.peers, pdl=True)

    def sum_and_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(rms_norm(sum of the ranks' x + residual), sum + residual)."""
        return triton_all_reduce.all_reduce_add_rms_norm(x, residual, weight, eps, self.peers, pdl=True)
