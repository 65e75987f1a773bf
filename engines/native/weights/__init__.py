"""Where weights come from: finding a model's files, and reading them as safetensors, GGUF or dummies.

Importing this package imports no torch; `loader` and the sources do.
"""

from __future__ import annotations

from collections.abc import Callable

OnProgress = Callable[[str, int, int], None]
"""Called with (stage, done, total) while a model is fetched ("download") and loaded ("weights"); units are bytes."""


def no_progress(stage: str, done: int, total: int) -> None:
    """An OnProgress for callers that do not look."""
