"""Fixtures that tests of every package share."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.errors import EngineUnavailable
from engines.native.demo_model import resolve_demo_model


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct (Q4_1), from the user's cache, fetched on first use."""
    try:
        return resolve_demo_model()
    except EngineUnavailable as error:
        pytest.skip(error.message)
