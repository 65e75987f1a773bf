"""What one step's result says about its sequence: whether it ends there, and the TokenOutput that its client gets.

Reads the sequence and changes nothing of it but its constraint, which `finish_of` tells of the token.
"""

from __future__ import annotations

from engines.native.sequence import Sequence
from engines.native.types import (
    FINISH_COMPLETE,
    FINISH_LENGTH,
    FINISH_NONE,
    FINISH_REFUSED,
    FINISH_STOP,
    LogprobRow,
    TokenOutput,
)


def finish_of(sequence: Sequence, token: int) -> tuple[int, str]:
    """Whether the token just appended ends its sequence, and what went wrong if that ends it. Once per token."""
    progress = "open" if sequence.constraint is None else sequence.constraint.advance(token)
    if progress == "failed":
        assert sequence.constraint is not None
        return FINISH_REFUSED, f"no token of this model's keeps to what may come next: {sequence.constraint.error}"
    num_generated = len(sequence.token_ids) - sequence.num_prompt_tokens
    if token in sequence.stop_token_ids and num_generated > sequence.params.min_tokens:
        return FINISH_STOP, ""
    if progress == "complete":
        return FINISH_COMPLETE, ""
    return (FINISH_LENGTH if len(sequence.token_ids) >= sequence.max_length else FINISH_NONE), ""


def token_output(sequence: Sequence, token: int, logprobs: LogprobRow | None, finish: int, error: str) -> TokenOutput:
    """Of the token just appended. The first of a sequence also says what is said once."""
    only_prompt = sequence.params.max_tokens == 0
    first = not sequence.reported
    return TokenOutput(
        seq_id=sequence.key[1],
        token_ids=() if only_prompt else (token,),
        finish=FINISH_LENGTH if only_prompt else finish,
        logprobs=(logprobs,) if logprobs is not None and not only_prompt else (),
        cached_tokens=sequence.num_cached_tokens if first else -1,
        queued_s=sequence.queued_s if first else 0.0,
        prompt_logprobs=(None, *sequence.prompt_logprobs) if first and sequence.params.prompt_logprobs >= 0 else (),
        error=error,
    )


def vector_output(sequence: Sequence, vector: bytes) -> TokenOutput:
    """Of a sequence that is pooled: its first output and its last."""
    return TokenOutput(
        seq_id=sequence.key[1],
        token_ids=(),
        finish=FINISH_STOP,
        cached_tokens=sequence.num_cached_tokens,
        queued_s=sequence.queued_s,
        embedding=vector,
    )
