"""An engine with no model: it answers with what it was asked."""

from engines.echo.engine import EchoEngine

__all__ = ["EchoEngine"]
