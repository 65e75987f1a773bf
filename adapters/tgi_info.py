"""GET /info and what an unhealthy server says, in TGI's shapes."""

from __future__ import annotations

from typing_extensions import TypedDict

from adapters.sse import to_json
from adapters.tgi_types import NativeLimits
from engines.api import ModelCard


class Info(TypedDict):
    """TGI's keys in TGI's order. What this server has no counterpart of is null."""

    model_id: str
    model_sha: str | None
    model_pipeline_tag: str | None
    max_concurrent_requests: int | None
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int | None
    max_total_tokens: int | None
    validation_workers: int
    max_client_batch_size: int
    router: str
    version: str
    sha: str | None
    docker_label: str | None


def info_body(card: ModelCard, limits: NativeLimits, max_concurrent_requests: int | None, version: str) -> bytes:
    total = card.max_model_len
    info: Info = {
        "model_id": card.name,
        "model_sha": None,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": max_concurrent_requests,
        "max_best_of": limits.max_best_of,
        "max_stop_sequences": limits.max_stop_sequences,
        "max_input_tokens": card.max_prompt_tokens or (None if total is None else total - 1),
        "max_total_tokens": total,
        "validation_workers": 1,
        "max_client_batch_size": limits.max_client_batch_size,
        "router": "headrace",
        "version": version,
        "sha": None,
        "docker_label": None,
    }
    return to_json(info)
