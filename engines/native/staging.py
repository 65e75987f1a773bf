"""Page-locked memory through which large arrays reach the device, kept from step to step. Knows no meaning of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_SMALLEST_BYTES = 1 << 20


class Staging:
    """Locking a megabyte of pages anew in every step takes the host longer than the device takes to use it."""

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
