"""An OpenAI-compatible upstream as an engine. Needs httpx and msgspec, not torch."""

from engines.remote.engine import RemoteEngine

__all__ = ["RemoteEngine"]
