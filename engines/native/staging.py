"""Page-locked memory between host and device, so that neither waits for the other. Knows no meaning of its contents."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_SMALLEST_BYTES = 1 << 20


class HostCopy:
    """A tensor on its way to the host; waiting for it waits for nothing launched later."""

    def __init__(self, tensor: Tensor) -> None:
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        else:
            self._host, self._copied = tensor.clone(), None  # a graph may write there again

    def wait(self) -> Tensor:
        if self._copied is not None:
            self._copied.synchronize()
        return self._host


class Staging:
    """Large arrays to the device through memory that is kept from step to step: locking a megabyte of pages anew
    in every step takes the host longer than the device takes to use it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._copied: torch.cuda.Event | None = None

    def to_device(self, array: np.ndarray) -> Tensor:
        """A copy of a contiguous array that the host does not wait for. On a CPU it shares the array's memory."""
        host = torch.from_numpy(array)
        if self._device.type == "cpu":
            return host
        if self._copied is not None:
            self._copied.synchronize()  # the one before may still be on its way
        if self._memory.numel() < array.nbytes:
            self._memory = torch.empty(max(2 * array.nbytes, _SMALLEST_BYTES), dtype=torch.uint8, pin_memory=True)
        staged = self._memory[: array.nbytes].view(host.dtype).view(host.shape)
        tensor = staged.copy_(host).to(self._device, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record()
        return tensor
