"""What OpenAI's generating routes have in common on the wire: sampling fields, stream options, usage, identity.

Field names, types and ranges are OpenAI's; what goes beyond them (from `top_k` on) is named as vLLM names it, because
clients already send those names. Says nothing about messages, prompts or choices.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from adapters.peer_fields import PeerFields
from adapters.watermark import WatermarkField, watermark_params
from adapters.wire import NoEffect, Refused, WireModel, reasons, refuse
from engines.api import Finish, SamplingParams, Usage

MAX_CHOICES = 2048  # choices of one HTTP request, over all its prompts
MAX_TOKEN_ID = 2**31 - 1
MAX_TOKENS = 2**31 - 1  # more than any context: such a value asks for whatever still fits
MAX_LOGPROBS = 20
INT64 = Field(ge=-(2**63), le=2**63 - 1)


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


_TOKEN_ID = re.compile(r"[0-9]{1,10}")


def _token_biases(value: object) -> object:
    """JSON object keys are strings; these must be token ids."""
    if isinstance(value, dict):
        for key in value:  # pyright: ignore[reportUnknownVariableType]
            if not (isinstance(key, str) and _TOKEN_ID.fullmatch(key) and int(key) <= MAX_TOKEN_ID):
                raise PydanticCustomError("token_id_key", 'keys must be token ids, such as "50256"')
    return value  # pyright: ignore[reportUnknownVariableType]


TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
StopString = Annotated[str, Field(min_length=1, max_length=4096)]
StopStrings = Annotated[
    list[StopString],
    Field(max_length=16, fail_fast=True),
    BeforeValidator(_listed, json_schema_input_type=str | list[str]),
]
Bias = Annotated[float, Field(ge=-100, le=100)]
RequestId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")]


def _some_tokens(count: int) -> int:
    if count == 0:
        raise PydanticCustomError("no_tokens", "must be at least 1, or -1 for as many as leave the answer room")
    return count


class StreamOptions(WireModel):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Annotated[
        bool | None, Refused("streams are not padded with random characters; leave it out or send false", (False,))
    ] = None


class PlatformFields(WireModel):
    """What OpenAI's newer routes tell its platform about a request: without effect here."""

    service_tier: Annotated[str | None, NoEffect("chooses among OpenAI's price classes; there is one class here.")] = (
        None
    )
    safety_identifier: Annotated[str | None, NoEffect("identifies an end user to OpenAI's abuse monitoring.")] = None
    prompt_cache_key: Annotated[
        str | None, NoEffect("routes to one of OpenAI's caches; prefixes are cached here without it.")
    ] = None
    prompt_cache_retention: Annotated[
        str | None, NoEffect("asks for a cache lifetime; prefixes stay here while there is room.")
    ] = None
    prompt_cache_options: Annotated[
        dict[str, Any] | None, NoEffect("tunes OpenAI's prompt cache; prefixes are cached here without it.")
    ] = None


class SamplingFields(PeerFields):
    """Fields of every route that generates."""

    model: str = Field(min_length=1, max_length=1024)
    stream: bool | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: Annotated[int, INT64] | None = None
    stop: StopStrings | None = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=1024), BeforeValidator(_token_biases)] | None = None

    # beyond OpenAI
    top_k: int | None = Field(default=None, ge=-1, le=MAX_TOKEN_ID)
    min_p: float | None = Field(default=None, ge=0, le=1)
    typical_p: float | None = Field(default=None, gt=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    min_tokens: int | None = Field(default=None, ge=0, le=MAX_TOKENS)
    stop_token_ids: Annotated[list[TokenId], Field(max_length=1024, fail_fast=True)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    bad_words: Annotated[list[StopString], Field(max_length=256, fail_fast=True)] | None = None
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=16384, fail_fast=True)] | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=MAX_TOKENS), AfterValidator(_some_tokens)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    cache_salt: str | None = Field(default=None, min_length=1, max_length=128)
    priority: Annotated[int, INT64] | None = None
    watermark: WatermarkField | None = None
    watermarking: bool | None = None  # vLLM's name of the switch

    user: Annotated[str | None, NoEffect("identifies an end user to OpenAI's abuse monitoring.")] = None


class Kept(TypedDict, total=False):
    """What is kept of a prompt, whose cache it may share and when it is served: arguments of a GenerationRequest."""

    truncate_prompt_tokens: int | None
    truncation_side: Literal["left", "right"]
    cache_salt: str
    priority: int


def kept(fields: SamplingFields) -> Kept:
    return {
        "truncate_prompt_tokens": fields.truncate_prompt_tokens,
        "truncation_side": fields.truncation_side or "left",
        "cache_salt": fields.cache_salt or "",
        "priority": fields.priority or 0,
    }


class GenerationFields(SamplingFields):
    """Fields of both /v1/chat/completions and /v1/completions."""

    n: int | None = Field(default=None, ge=1, le=128)
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=0, le=MAX_TOKENS)
    prompt_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    request_id: RequestId | None = None  # a part of the answer's id

    def check_combinations(self) -> None:
        """Raises InvalidRequest for fields that contradict each other."""
        if self.stream_options is not None and not self.stream:
            refuse("stream_options", "only allowed when stream is true")
        if self.prompt_logprobs is not None and self.stream:
            refuse("prompt_logprobs", "not available when stream is true")


Request = TypeVar("Request", bound=GenerationFields)


def sampling_params(
    fields: SamplingFields, *, max_tokens: int | None, logprobs: int | None, prompt_logprobs: int | None = None
) -> SamplingParams:
    """`max_tokens` and the logprobs are named apart, for the two routes name and type them differently."""
    min_tokens = fields.min_tokens or 0
    if max_tokens is not None and min_tokens > max_tokens:
        refuse("min_tokens", f"must not exceed the maximum number of tokens, {max_tokens} (got {min_tokens})")
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=fields.temperature,
        top_p=fields.top_p,
        top_k=fields.top_k,
        min_p=fields.min_p,
        typical_p=fields.typical_p,
        repetition_penalty=fields.repetition_penalty,
        presence_penalty=fields.presence_penalty or 0.0,
        frequency_penalty=fields.frequency_penalty or 0.0,
        logit_bias=tuple((int(token_id), bias) for token_id, bias in (fields.logit_bias or {}).items()),
        bad_words=tuple(fields.bad_words or ()),
        allowed_token_ids=tuple(fields.allowed_token_ids or ()),
        seed=fields.seed,
        stop=tuple(fields.stop or ()),
        stop_token_ids=tuple(fields.stop_token_ids or ()),
        include_stop_str_in_output=bool(fields.include_stop_str_in_output),
        ignore_eos=bool(fields.ignore_eos),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        skip_special_tokens=fields.skip_special_tokens is not False,
        spaces_between_special_tokens=fields.spaces_between_special_tokens is not False,
        watermark=watermark_params(_watermark(fields)),
    )


def _watermark(fields: SamplingFields) -> WatermarkField | None:
    if fields.watermarking is not None and fields.watermark is not None:
        refuse("watermarking", "cannot be sent together with watermark")
    return fields.watermarking if fields.watermark is None else fields.watermark


def budget_of(asked: int | None) -> int | None:
    """A thinking budget, which vLLM's clients may set to -1 for none."""
    return None if asked == -1 else asked


def forwarded_fields(fields: SamplingFields, no_effect: Sequence[str]) -> dict[str, Any]:
    """Fields that mean nothing to our own engines and something to an upstream, as the client sent them."""
    return {name: value for name in no_effect if (value := getattr(fields, name)) is not None}


def no_effect_fields(model: type[SamplingFields]) -> dict[str, str]:
    return reasons(model, NoEffect)


# --- answers ----------------------------------------------------------------------------------------------------------

FinishWord = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Identity:
    """What every chunk and the whole answer repeat. `created` is Unix time in seconds."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class PromptTokensDetails(TypedDict):
    cached_tokens: int


class CompletionTokensDetails(TypedDict):
    reasoning_tokens: int


class UsageObject(TypedDict):
    """`completion_tokens_details` stands where the model reasoned."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: NotRequired[CompletionTokensDetails]


def usage_object(usages: Sequence[Usage]) -> UsageObject:
    """The sum over an exchange's requests."""
    prompt_tokens = sum(usage.prompt_tokens for usage in usages)
    completion_tokens = sum(usage.completion_tokens for usage in usages)
    told: UsageObject = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in usages)},
    }
    if reasoning_tokens := sum(usage.reasoning_tokens for usage in usages):
        told["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
    return told


def finish_word(finish: Finish | None) -> FinishWord:
    """OpenAI has no word for an aborted choice; "length" says at least that the text is not all there could be."""
    return finish.reason if finish is not None and finish.reason in ("stop", "tool_calls") else "length"


def stop_reason(finish: Finish | None) -> str | int | None:
    """vLLM's field beside finish_reason: the stop string or token id that matched, None for EOS and lengths."""
    if finish is None:
        return None
    return "abort" if finish.reason == "abort" else finish.matched
