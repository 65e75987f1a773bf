"""The wire models of POST /v1/completions: its request and its answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NotRequired, cast

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from adapters.openai_logprobs import CompletionLogprobs, PromptLogprobs
from adapters.openai_structured import ARM_POSITIONS, StructuredFields
from adapters.openai_types import (
    MAX_CHOICES,
    MAX_LOGPROBS,
    MAX_TOKEN_ID,
    FinishWord,
    GenerationFields,
    UsageObject,
    no_effect_fields,
)
from adapters.wire import Refused, refuse

# --- the prompt -------------------------------------------------------------------------------------------------------

Prompts = tuple[str | tuple[int, ...], ...]


def read_prompts(value: Any) -> Prompts:
    """The four forms of `prompt` (and of `input` in POST /v1/embeddings) as one: each a string or token ids.

    By hand: a long list is looked at once.
    """
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise _bad_prompt(
            "must be a string, an array of strings, of token ids, or of arrays of token ids, and not empty"
        )
    items = cast(list[Any], value)
    first = items[0]
    if isinstance(first, str):
        if not all(isinstance(item, str) for item in items):
            raise _bad_prompt("mixes strings with other types")
        return tuple(items)
    if isinstance(first, list):
        return tuple(_token_ids(item) for item in items)
    return (_token_ids(items),)


def _token_ids(items: Any) -> tuple[int, ...]:
    if not isinstance(items, list) or not items:
        raise _bad_prompt("an array of token ids must not be empty, nor mixed with other types")
    token_ids = cast(list[Any], items)
    # By exact type, for JSON's true and false are ints to Python; by set, min and max, for prompts are long.
    if set(map(type, token_ids)) != {int} or min(token_ids) < 0 or max(token_ids) > MAX_TOKEN_ID:
        raise _bad_prompt(f"token ids must be integers from 0 to {MAX_TOKEN_ID}")
    return tuple(token_ids)


def _bad_prompt(message: str) -> PydanticCustomError:
    return PydanticCustomError("prompt", "{message}", {"message": message})


# --- the request ------------------------------------------------------------------------------------------------------


class CompletionRequest(GenerationFields, StructuredFields):
    """POST /v1/completions. `max_tokens` is 16 when absent, as OpenAI has it."""

    arm_positions: ClassVar[Mapping[str, int]] = ARM_POSITIONS

    prompt: Annotated[
        Prompts, PlainValidator(read_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]])
    ]
    best_of: int | None = Field(default=None, ge=1, le=128)
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    add_special_tokens: bool | None = None  # beyond OpenAI; default: true, for text alone
    thinking_token_budget: Annotated[
        Any, Refused("a text's continuation is not told apart into reasoning and answer; chat is", (-1,))
    ] = None
    prompt_embeds: Annotated[Any, Refused("prompts are texts or token ids")] = None
    suffix: Annotated[Any, Refused("inserting text before a suffix is not supported", ("",))] = None

    def check_combinations(self) -> None:
        super().check_combinations()
        n, best_of = self.n or 1, self.best_of
        if best_of is not None and best_of < n:
            refuse("best_of", f"must not be less than n, {n} (got {best_of})")
        if best_of is not None and best_of > n and self.stream:
            refuse("best_of", f"must equal n, {n}, when stream is true (got {best_of})")
        if self.max_tokens == 0 and not self.echo:
            refuse("max_tokens", "must be at least 1 unless echo is true (got 0)")
        num_choices = len(self.prompt) * (best_of or n)
        if num_choices > MAX_CHOICES:
            refuse("prompt", f"all prompts together may have at most {MAX_CHOICES} choices (got {num_choices})")


NO_EFFECT_FIELDS: Mapping[str, str] = no_effect_fields(CompletionRequest)
"""Fields of a completion request that our own engines accept without effect, with the reason for each."""

# --- the answers ------------------------------------------------------------------------------------------------------


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishWord
    stop_reason: str | int | None
    token_ids: NotRequired[list[int]]
    prompt_token_ids: NotRequired[list[int]]
    prompt_logprobs: NotRequired[PromptLogprobs]


class Completion(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: UsageObject


class CompletionChunkChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishWord | None
    stop_reason: NotRequired[str | int | None]
    token_ids: NotRequired[list[int]]
    prompt_token_ids: NotRequired[list[int]]


class CompletionChunk(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChunkChoice]
    usage: NotRequired[UsageObject | None]
