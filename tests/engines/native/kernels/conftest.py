"""Triton kernels run compiled where there is a GPU, and in Triton's interpreter, on CPU tensors, everywhere else."""

import importlib.util
import os

import pytest
import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None
HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    # Read when triton is imported, so before any kernel module is.
    os.environ["TRITON_INTERPRET"] = "1"

collect_ignore_glob = [] if HAS_TRITON else ["test_triton_*.py"]


def pytest_report_header() -> str:
    if not HAS_TRITON:
        return "triton kernels: not tested, triton is not installed"
    return f"triton kernels: {'compiled' if HAS_GPU else 'interpreted'}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not HAS_GPU:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
        if not HAS_GPU:  # Triton's interpreter on recent numpy
            item.add_marker(pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if HAS_GPU else "cpu")


@pytest.fixture
def dtype() -> torch.dtype:
    """What matrix products are tested in: as in production on a GPU, exact where interpreted (which lacks bfloat16)."""
    return torch.bfloat16 if HAS_GPU else torch.float32
