"""Fixtures that tests of every package share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from engines.errors import EngineUnavailable
from engines.native.demo_model import resolve_demo_model

# How long an example takes says more about the machine than about what is tested.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct (Q4_1), from the user's cache, fetched on first use."""
    try:
        return resolve_demo_model()
    except EngineUnavailable as error:
        pytest.skip(error.message)
