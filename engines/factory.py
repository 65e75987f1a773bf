"""A settings section to the engine that it describes. A kind is imported only when a section asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from config.engines import EchoSettings, EngineSettings, NativeSettings, RemoteSettings
from engines.api import Engine


def create_engine(section: EngineSettings) -> Engine:
    """Not started yet. Raises ImportError where the kind's packages are not installed."""
    return _KINDS[section.kind](section)


def _echo(section: EchoSettings) -> Engine:
    from engines.echo import EchoEngine

    return EchoEngine(section)


def _remote(section: RemoteSettings) -> Engine:
    from engines.remote.engine import RemoteEngine

    return RemoteEngine(section)


def _native(section: NativeSettings) -> Engine:
    from engines.native.engine import NativeEngine

    return NativeEngine(section)


_KINDS: Mapping[str, Callable[[Any], Engine]] = {"echo": _echo, "remote": _remote, "native": _native}
