"""The servers that real clients are tested against: one for each engine kind in LIVE."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from config.engines import EchoSettings, NativeSettings
from engines.echo import EchoEngine
from engines.native.engine import NativeEngine
from gateway.app import create_app
from tests.gateway.live import Live, serving

LIVE = ["echo_live", "native_live"]


@pytest.fixture(scope="session")
def echo_live() -> Iterator[Live]:
    with serving(create_app([EchoEngine(EchoSettings())]), "echo") as server:
        yield server


@pytest.fixture(scope="session")
def native_live(smollm2_gguf: Path) -> Iterator[Live]:
    """SmolLM2 on CPU, its core in a process of its own."""
    section = NativeSettings(
        model=str(smollm2_gguf), device="cpu", kv_cache_memory="512MiB", served_model_name=("smollm2", "smollm2-alias")
    )
    with serving(create_app([NativeEngine(section)]), "smollm2") as server:
        yield server


@pytest.fixture(scope="module", params=LIVE)
def live(request: pytest.FixtureRequest) -> Live:
    return request.getfixturevalue(request.param)
