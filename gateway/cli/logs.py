"""Where log lines go: all of them to standard error, the access log as bare JSON, other libraries from warnings on."""

from __future__ import annotations

import logging
import sys


def configure_logging(level: str) -> None:
    """Once per process, before anything logs."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("headrace").setLevel(level.upper())
    access = logging.getLogger("headrace.access")
    access.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))  # the message is the whole line already
    access.addHandler(handler)
