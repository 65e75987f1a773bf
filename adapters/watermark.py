"""Watermarks on the wire: a request's `watermark` field, and POST /v1/watermark/detect.

Detection takes text or token ids and says how surely they carry the mark of a scheme and key, the server's own where
none are named.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from adapters.sse import to_json
from adapters.wire import WireModel, parse_body, refuse, tagged
from engines.api import TextPrompt, TokensPrompt, WatermarkParams, WatermarkReport

MAX_KEY_CHARS = 1024
MAX_TOKEN_ID = 2**31 - 1
DEFAULT_FALSE_POSITIVE_RATE = 1e-4


def _secret(value: object) -> object:
    """Checked here, so that no error message ever shows a glimpse of it."""
    if value is not None and not (isinstance(value, str) and 0 < len(value) <= MAX_KEY_CHARS):
        raise PydanticCustomError("secret", "must be a string of 1 to {limit} characters", {"limit": MAX_KEY_CHARS})
    return value


class WatermarkFields(WireModel):
    """What is left out is as the server is set, or the scheme's own default."""

    scheme: Literal["green_list", "gumbel", "synthid"] | None = None
    key: Annotated[str | None, BeforeValidator(_secret)] = Field(default=None, repr=False)
    gamma: float | None = Field(default=None, gt=0, lt=1)
    delta: float | None = Field(default=None, gt=0, le=100)
    context_width: int | None = Field(default=None, ge=1, le=16)
    self_hash: bool | None = None
    depth: int | None = Field(default=None, ge=1, le=32)

    def params(self) -> WatermarkParams:
        return WatermarkParams(
            scheme=self.scheme,
            key=self.key,
            gamma=self.gamma,
            delta=self.delta,
            context_width=self.context_width,
            self_hash=self.self_hash,
            depth=self.depth,
        )


def _kind(value: object) -> str | None:
    if isinstance(value, bool):
        return tagged("switch")
    return tagged("settings") if isinstance(value, dict | WatermarkFields) else None


WatermarkField = Annotated[
    Annotated[bool, Tag(tagged("switch"))] | Annotated[WatermarkFields, Tag(tagged("settings"))],
    Discriminator(
        _kind, custom_error_type="watermark_type", custom_error_message="must be a boolean or an object of settings"
    ),
]


def watermark_params(field: bool | WatermarkFields | None) -> WatermarkParams | bool | None:
    return field.params() if isinstance(field, WatermarkFields) else field


# --- detection --------------------------------------------------------------------------------------------------------


class DetectRequest(WatermarkFields):
    """Exactly one of `text` and `tokens`: what was generated, without its prompt."""

    model: str | None = Field(default=None, min_length=1, max_length=1024)
    text: str | None = Field(default=None, min_length=1)
    tokens: (
        Annotated[list[Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]], Field(min_length=1, fail_fast=True)] | None
    ) = None
    lists: Literal["headrace", "tgi"] | None = None
    false_positive_rate: float | None = Field(default=None, gt=0, lt=1)
    return_tokens: bool | None = None


class MarkedToken(TypedDict):
    id: int
    text: str
    mark: float | None


class WatermarkDetection(TypedDict):
    object: Literal["watermark.detection"]
    model: str
    scheme: str
    num_tokens: int
    num_tokens_scored: int
    statistic: float
    z_score: float
    p_value: float
    false_positive_rate: float
    watermarked: bool
    tokens: list[MarkedToken] | None


@dataclass(frozen=True, slots=True)
class DetectCall:
    """`model` is None where the client named none: the gateway's only or first model."""

    model: str | None
    content: TextPrompt | TokensPrompt
    watermark: WatermarkParams
    false_positive_rate: float
    with_tokens: bool


def parse_detect(body: bytes) -> DetectCall:
    """Raises InvalidRequest naming the field."""
    request = parse_body(DetectRequest, body)
    if (request.text is None) == (request.tokens is None):
        refuse("text", "send either text or tokens, one of them", code="missing_required_parameter")
    content = TextPrompt(request.text, False) if request.text is not None else TokensPrompt(tuple(request.tokens or ()))
    rate = request.false_positive_rate
    return DetectCall(
        request.model,
        content,
        replace(request.params(), lists=request.lists),
        DEFAULT_FALSE_POSITIVE_RATE if rate is None else rate,
        request.return_tokens is not False,
    )


def detect_body(report: WatermarkReport, model: str, call: DetectCall) -> bytes:
    answer: WatermarkDetection = {
        "object": "watermark.detection",
        "model": model,
        "scheme": report.scheme,
        "num_tokens": len(report.tokens),
        "num_tokens_scored": report.num_tokens_scored,
        "statistic": report.statistic,
        "z_score": report.z_score,
        "p_value": report.p_value,
        "false_positive_rate": call.false_positive_rate,
        "watermarked": report.p_value <= call.false_positive_rate,
        "tokens": [{"id": token.token_id, "text": token.text, "mark": token.mark} for token in report.tokens]
        if call.with_tokens
        else None,
    }
    return to_json(answer)
