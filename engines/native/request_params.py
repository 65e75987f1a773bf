"""From what a client asked (SamplingParams) to what the core needs (TokenParams): defaults filled in, limits checked.

Everything that can be wrong with a request against this model is found here, before the core hears of it; errors name
the field and the limit.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from engines.api import GenerationRequest, SamplingParams
from engines.errors import InvalidRequest, PromptTooLong
from engines.native.generation_config import GenerationConfig
from engines.native.tokenizer import Tokenizer
from engines.native.types import Ready, TokenParams, Watermark

MAX_LOGPROBS = 20
_MAX_SEED = 2**63 - 1
_Number = TypeVar("_Number", int, float)


def truncated(token_ids: list[int], request: GenerationRequest, ready: Ready) -> list[int]:
    """The prompt tokens that `truncate_prompt_tokens` leaves."""
    wanted = request.truncate_prompt_tokens
    if wanted is None:
        return token_ids
    most = max(ready.max_model_len - (request.sampling.max_tokens or 1), 1) if wanted < 0 else wanted
    return token_ids[:most] if request.truncation_side == "right" else token_ids[-most:]


def check_prompt(token_ids: Sequence[int], ready: Ready, field: str, max_prompt_tokens: int | None = None) -> None:
    """Raises InvalidRequest for a prompt that no model call could take, PromptTooLong for one that leaves no room.

    `field` is where the client wrote it.
    """
    check_token_ids(token_ids, ready, field)
    if len(token_ids) >= ready.max_model_len:
        raise PromptTooLong(
            f"The prompt has {len(token_ids)} tokens; the model's context length is {ready.max_model_len} tokens, "
            "prompt and output together.",
            field=field,
        )
    if max_prompt_tokens is not None and len(token_ids) > max_prompt_tokens:
        raise PromptTooLong(
            f"The prompt has {len(token_ids)} tokens; this server takes at most {max_prompt_tokens}.", field=field
        )


def check_token_ids(token_ids: Sequence[int], ready: Ready, field: str) -> None:
    """Raises InvalidRequest for no tokens, and for tokens that the model does not have."""
    if not token_ids:
        raise InvalidRequest(f"{field}: it must have at least one token.", field=field)
    if max(token_ids) >= ready.vocab_size or min(token_ids) < 0:
        raise InvalidRequest(f"{field}: token ids must be in [0, {ready.vocab_size}).", field=field)


def output_limit(sampling: SamplingParams, num_prompt_tokens: int, ready: Ready) -> int:
    """max_tokens, or what the context still holds. Raises PromptTooLong when both do not fit."""
    room = ready.max_model_len - num_prompt_tokens
    if sampling.max_tokens is None:
        return room
    if sampling.max_tokens > room:
        raise PromptTooLong(
            f"max_tokens is {sampling.max_tokens} and the prompt has {num_prompt_tokens} tokens; together they exceed "
            f"the model's context length of {ready.max_model_len} tokens.",
            field="max_tokens",
        )
    return sampling.max_tokens


def token_params(
    request: GenerationRequest,
    num_prompt_tokens: int,
    *,
    ready: Ready,
    tokenizer: Tokenizer,
    defaults: GenerationConfig,
    watermark: Watermark | None = None,
) -> list[TokenParams]:
    """One per choice: they differ in their seed only. `watermark` is the request's, resolved."""
    sampling = request.sampling
    max_tokens = output_limit(sampling, num_prompt_tokens, ready)
    _check_ids("logit_bias", [token_id for token_id, _ in sampling.logit_bias], ready)
    _check_ids("stop_token_ids", sampling.stop_token_ids, ready)
    _check_ids("allowed_token_ids", sampling.allowed_token_ids, ready)
    for field, count in (("logprobs", sampling.logprobs), ("prompt_logprobs", sampling.prompt_logprobs)):
        if count is not None and not 0 <= count <= MAX_LOGPROBS:
            raise InvalidRequest(f"{field}: at most {MAX_LOGPROBS} alternatives, {count} asked for.", field=field)
    if sampling.min_tokens > max_tokens:
        raise InvalidRequest(
            f"min_tokens ({sampling.min_tokens}) must not exceed max_tokens ({max_tokens}).", field="min_tokens"
        )
    stop_token_ids = set(sampling.stop_token_ids)
    if not sampling.ignore_eos:
        stop_token_ids.update(tokenizer.eos_token_ids, defaults.eos_token_ids)
    first_seed = random.getrandbits(62) if sampling.seed is None else sampling.seed & _MAX_SEED
    bad_words = tuple(ids for word in sampling.bad_words for ids in _word_ids(word, tokenizer))
    return [
        TokenParams(
            max_tokens=max_tokens,
            min_tokens=sampling.min_tokens,
            temperature=_first(sampling.temperature, defaults.temperature, 1.0),
            top_k=max(_first(sampling.top_k, defaults.top_k, 0), 0),
            top_p=_first(sampling.top_p, defaults.top_p, 1.0),
            min_p=_first(sampling.min_p, defaults.min_p, 0.0),
            typical_p=_first(sampling.typical_p, defaults.typical_p, 1.0),
            repetition_penalty=_first(sampling.repetition_penalty, defaults.repetition_penalty, 1.0),
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            seed=(first_seed + choice) & _MAX_SEED,
            stop_token_ids=tuple(sorted(stop_token_ids)),
            logit_bias=sampling.logit_bias,
            bad_words=bad_words,
            logprobs=-1 if sampling.logprobs is None else sampling.logprobs,
            prompt_logprobs=-1 if sampling.prompt_logprobs is None else sampling.prompt_logprobs,
            watermark=watermark,
            allowed_token_ids=sampling.allowed_token_ids,
        )
        for choice in range(request.n)
    ]


def _first(asked: _Number | None, models_own: _Number | None, otherwise: _Number) -> _Number:
    if asked is not None:
        return asked
    return otherwise if models_own is None else models_own


def _check_ids(field: str, token_ids: Sequence[int], ready: Ready) -> None:
    for token_id in token_ids:
        if not 0 <= token_id < ready.vocab_size:
            raise InvalidRequest(
                f"{field}: token id {token_id} is not in the vocabulary of {ready.vocab_size} tokens.", field=field
            )


def _word_ids(word: str, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """A word's token sequences: as it stands at the start of a text, and after a space, where those differ."""
    plain = tuple(tokenizer.encode(word, add_special_tokens=False))
    spaced = tuple(tokenizer.encode(" " + word.lstrip(), add_special_tokens=False))
    if not plain:
        raise InvalidRequest("bad_words: a word must have at least one token.", field="bad_words")
    return list(dict.fromkeys((plain, spaced)))
