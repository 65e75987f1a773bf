"""How many generating requests may be in progress at once. One over the limit is refused, never kept waiting."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from engines.errors import Overloaded


class Permits:
    """`limit` None: as many as come. Counts what one process serves."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._num_taken = 0

    @contextmanager
    def taken(self) -> Generator[None, None, None]:
        """Raises Overloaded. A permit is held to the end of the answer, streamed or whole."""
        if self.limit is not None and self._num_taken >= self.limit:
            raise Overloaded(f"{self.limit} requests are being answered, and this server takes no more at once.")
        self._num_taken += 1
        try:
            yield
        finally:
            self._num_taken -= 1
