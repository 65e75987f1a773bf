"""The headers in which TGI says how long an answer took and what it was made of. Read from the request's record."""

from __future__ import annotations

import time

from gateway.record import RequestRecord, spent_s


def stream_headers(compute_type: str, num_input_chars: int) -> dict[str, str]:
    """What is known before the first byte."""
    return {"x-compute-type": compute_type, "x-compute-characters": str(num_input_chars)}


def whole_headers(record: RequestRecord, compute_type: str, num_input_chars: int) -> dict[str, str]:
    """Of an answer that is complete. x-compute-time is in seconds, every other time in whole milliseconds."""
    total_s = time.perf_counter() - record.started_at
    spent = spent_s(record, total_s)
    return {
        **stream_headers(compute_type, num_input_chars),
        "x-compute-time": f"{total_s:.6f}",
        "x-total-time": _ms(total_s),
        "x-validation-time": _ms(spent.validation),
        "x-queue-time": _ms(spent.queue),
        "x-inference-time": _ms(spent.inference),
        "x-time-per-token": _ms(spent.inference / max(record.completion_tokens, 1)),
        "x-prompt-tokens": str(record.prompt_tokens),
        "x-generated-tokens": str(record.completion_tokens),
    }


def _ms(seconds: float) -> str:
    return str(round(seconds * 1e3))
