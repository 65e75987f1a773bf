"""Arrays reach the device whole, one after the other through the same memory."""

import numpy as np
import pytest
import torch

from engines.native.staging import Staging


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")],
        ),
    ],
)
def test_each_array_arrives_whatever_follows_it(device: str) -> None:
    staging = Staging(torch.device(device))
    arrays = [np.full((rows, 4748), rows, dtype=np.int32) for rows in (1, 64, 3, 200, 64)]
    tensors = [staging.to_device(array) for array in arrays]
    for array, tensor in zip(arrays, tensors, strict=True):
        assert tensor.device.type == device
        assert np.array_equal(tensor.cpu().numpy(), array)
