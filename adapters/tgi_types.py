"""The wire models of TGI's native API: its request, with the rules that TGI checks, and its answers.

Unknown fields are taken, as TGI takes them, but never in silence: `ignored` names them for a response header.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BeforeValidator, ConfigDict, Field
from typing_extensions import TypedDict

from adapters.tgi_errors import refuse_native
from adapters.watermark import WatermarkField
from adapters.wire import WIRE_CONFIG, WireModel

_U32 = Field(ge=0, le=2**32 - 1)
_U64 = Field(ge=0, le=2**64 - 1)
_U32Int = Annotated[int, _U32]


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeLimits:
    """What a server allows on the native routes, and whether a stop string stays in the text it ends."""

    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5
    max_client_batch_size: int = 4
    keep_stop: bool = True


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class NativeModel(WireModel):
    """JSON types are taken as they are, null means absent, and unknown fields are kept apart."""

    model_config = ConfigDict({**WIRE_CONFIG, "extra": "allow"})

    def unknown(self) -> list[str]:
        return list(self.model_extra or ())


class GenerateParameters(NativeModel):
    """`parameters` of a native request. Ranges are checked by `check`, in TGI's order and under its prefix."""

    best_of: _U32Int | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: int | None = Field(default=None, ge=-(2**31), lt=2**31)
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool | None = None
    max_new_tokens: _U32Int | None = None
    return_full_text: bool | None = None
    stop: Annotated[list[str], BeforeValidator(_listed, json_schema_input_type=str | list[str])] | None = None
    stop_sequences: list[str] | None = None  # TGI ignores this name, which older clients send; here it is `stop`
    truncate: _U32Int | None = None
    watermark: WatermarkField | None = None
    details: bool | None = None
    decoder_input_details: bool | None = None
    seed: Annotated[int, _U64] | None = None
    top_n_tokens: _U32Int | None = None
    grammar: Any = None
    adapter_id: str | None = None
    include_stop_str_in_output: bool | None = None  # beyond TGI: whether a stop string stays, for this request

    @property
    def stops(self) -> tuple[str, ...]:
        return (*(self.stop or ()), *(self.stop_sequences or ()))

    @property
    def warps(self) -> bool:
        """Whether anything was asked for that only sampling can honour."""
        asked = (self.top_k, self.top_p, self.typical_p)
        return (self.temperature not in (None, 1.0)) or any(value is not None for value in asked)

    def check(self, limits: NativeLimits, *, stream: bool) -> None:
        """Raises InvalidRequest for the first rule that is broken."""
        self._check_best_of(limits, stream)
        _positive("temperature", self.temperature)
        _positive("repetition_penalty", self.repetition_penalty)
        if self.frequency_penalty is not None and not -2 <= self.frequency_penalty <= 2:
            refuse_native("`frequency_penalty` must be at least -2.0 and at most 2.0", "frequency_penalty")
        _open_unit("top_p", self.top_p)
        _open_unit("typical_p", self.typical_p)
        _positive("top_k", self.top_k)
        if self.max_new_tokens == 0:
            refuse_native("`max_new_tokens` must be greater than 0", "max_new_tokens")
        if (count := len(self.stops)) > limits.max_stop_sequences:
            refuse_native(f"`stop` takes at most {limits.max_stop_sequences} stop sequences. Given: {count}", "stop")
        if not all(self.stops):
            refuse_native("`stop` must not hold an empty string", "stop")
        if (self.top_n_tokens or 0) > limits.max_top_n_tokens:
            refuse_native(
                f"`top_n_tokens` must be at most {limits.max_top_n_tokens}. Given: {self.top_n_tokens}", "top_n_tokens"
            )
        _positive("truncate", self.truncate)
        if self.adapter_id is not None:
            refuse_native("`adapter_id` cannot be honoured: this server has no adapters", "adapter_id")

    def _check_best_of(self, limits: NativeLimits, stream: bool) -> None:
        best_of = self.best_of
        if stream and best_of not in (None, 1):
            refuse_native("`best_of` other than 1 is not possible in a stream", "best_of")
        if stream and self.decoder_input_details:
            refuse_native("`decoder_input_details` is not possible in a stream", "decoder_input_details")
        if best_of is None:
            return
        if not 1 <= best_of <= limits.max_best_of:
            refuse_native(f"`best_of` must be at least 1 and at most {limits.max_best_of}. Given: {best_of}", "best_of")
        sampled = self.do_sample or self.temperature is not None or self.warps
        if best_of > 1 and not sampled:
            refuse_native("`best_of` greater than 1 needs sampling", "best_of")
        if best_of > 1 and self.seed is not None:
            refuse_native("`seed` cannot be given together with `best_of` greater than 1", "seed")


def _positive(name: str, value: float | None) -> None:
    if value is not None and value <= 0:
        refuse_native(f"`{name}` must be greater than 0", name)


def _open_unit(name: str, value: float | None) -> None:
    if value is not None and not 0 < value < 1:
        refuse_native(f"`{name}` must be greater than 0.0 and less than 1.0", name)


class NativeRequest(NativeModel):
    """POST /, /generate and /generate_stream. `model` is beyond TGI: one of several that are served."""

    inputs: str
    parameters: GenerateParameters | None = None
    stream: bool | None = None  # read by POST / alone
    model: str | None = None

    @property
    def ignored(self) -> list[str]:
        inner = [] if self.parameters is None else self.parameters.unknown()
        return self.unknown() + [f"parameters.{name}" for name in inner]


# --- answers ----------------------------------------------------------------------------------------------------------

NativeFinish = Literal["length", "eos_token", "stop_sequence"]


class PrefillToken(TypedDict):
    id: int
    text: str
    logprob: float | None


class NativeToken(TypedDict):
    id: int
    text: str
    logprob: float | None
    special: bool


class BestOfSequence(TypedDict):
    generated_text: str
    finish_reason: NativeFinish
    generated_tokens: int
    seed: int | None
    prefill: Sequence[PrefillToken]
    tokens: Sequence[NativeToken]
    top_tokens: NotRequired[Sequence[Sequence[NativeToken]]]


class Details(TypedDict):
    finish_reason: NativeFinish
    generated_tokens: int
    seed: int | None
    prefill: Sequence[PrefillToken]
    tokens: Sequence[NativeToken]
    top_tokens: NotRequired[Sequence[Sequence[NativeToken]]]
    best_of_sequences: NotRequired[Sequence[BestOfSequence]]


class NativeResponse(TypedDict):
    generated_text: str
    details: NotRequired[Details]


class StreamDetails(TypedDict):
    finish_reason: NativeFinish
    generated_tokens: int
    seed: int | None
    input_length: int


class NativeStreamEvent(TypedDict):
    """`index` counts tokens from 1. The last two are null in every event but the last."""

    index: int
    token: NativeToken
    top_tokens: NotRequired[Sequence[NativeToken]]
    generated_text: str | None
    details: StreamDetails | None
