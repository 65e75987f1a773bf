"""The headers in which TGI says how long an answer took and what it was made of; and which fields it passed over."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from adapters.adapter import Exchange
from adapters.tgi import facts_of
from gateway.record import RequestRecord, spent_s

_MAX_IGNORED = 16
_HEADER_SAFE = re.compile(r"[\w.-]{1,64}", re.ASCII)


def told_before(exchange: Exchange, compute_type: str) -> dict[str, str]:
    """What is known before the first byte, and all that goes with a stream."""
    facts = facts_of(exchange)
    told = {"x-compute-type": compute_type, "x-compute-characters": str(facts.num_input_chars)}
    return told | _ignored(facts.ignored)


def told_after(record: RequestRecord) -> dict[str, str]:
    """Of an answer that is complete. x-compute-time is in seconds, every other time in whole milliseconds."""
    total_s = time.perf_counter() - record.started_at
    spent = spent_s(record, total_s)
    return {
        "x-compute-time": f"{total_s:.6f}",
        "x-total-time": _ms(total_s),
        "x-validation-time": _ms(spent.validation),
        "x-queue-time": _ms(spent.queue),
        "x-inference-time": _ms(spent.inference),
        "x-time-per-token": _ms(spent.inference / max(record.completion_tokens, 1)),
        "x-prompt-tokens": str(record.prompt_tokens),
        "x-generated-tokens": str(record.completion_tokens),
    }


def _ignored(names: Sequence[str]) -> dict[str, str]:
    """Which fields of the request nobody looked at."""
    safe = [name for name in names if _HEADER_SAFE.fullmatch(name)]
    return {"x-ignored-fields": ", ".join(safe[:_MAX_IGNORED])} if safe else {}


def _ms(seconds: float) -> str:
    return str(round(seconds * 1e3))
