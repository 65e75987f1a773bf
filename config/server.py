"""What the HTTP server of one `headrace serve` is told, whatever engines stand behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ServerSection(BaseModel):
    """Address, processes, limits and logging of the gateway."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 for every interface.")
    port: int = Field(default=8080, ge=0, le=65535, description="TCP port; 0 lets the system choose a free one.")
    uds: Path | None = Field(
        default=None,
        examples=["/run/headrace.sock"],
        description="Listen on this Unix socket instead of HOST and PORT.",
    )
    gateway_workers: int = Field(
        default=1, ge=1, le=64, description="HTTP processes behind one socket; the native engine stays one process."
    )
    max_body_bytes: int = Field(default=32 * 2**20, ge=1024, description="Largest request body; above it: 413.")
    shutdown_timeout_s: float = Field(
        default=30.0, ge=0, description="Seconds that open requests get to finish after SIGTERM or Ctrl-C."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe messages that reach the log, on standard error."
    )
