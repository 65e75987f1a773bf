"""What the HTTP server of one `headrace serve` is told, whatever engines stand behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from config.names import Names
from config.tgi import TgiSection


class ServerSection(TgiSection):
    """Address, processes, limits and logging of the gateway."""

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
    api_key: SecretStr | None = Field(
        default=None,
        examples=["secret"],
        description="Key that every POST must bring, as a bearer token or in x-api-key; process lists show flags.",
    )
    cors_allow_origin: Names = Field(
        default=(),
        examples=[["https://example.com"]],
        description="Origins whose pages may call from a browser; `*` for any. Default: none.",
    )
    max_concurrent_requests: int | None = Field(
        default=None,
        ge=1,
        examples=[128],
        description="Generating requests per gateway process, beyond which new ones are refused. Default: no limit.",
    )
    any_model: bool = Field(
        default=False, description="Answer requests that name no model, or one that is not served, with the first one."
    )
    max_body_bytes: int = Field(default=32 * 2**20, ge=1024, description="Largest request body; above it: 413.")
    responses_path: Path | None = Field(
        default=None,
        examples=["/var/lib/headrace/responses.sqlite"],
        description="SQLite file that keeps the answers of /v1/responses beyond a restart. Default: in memory.",
    )
    responses_max_bytes: int = Field(
        default=256 * 2**20,
        ge=0,
        description="Bytes of answers kept for /v1/responses; what was used longest ago makes room.",
    )
    shutdown_timeout_s: float = Field(
        default=30.0, ge=0, description="Seconds that open requests get to finish after SIGTERM or Ctrl-C."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe messages that reach the log, on standard error."
    )
