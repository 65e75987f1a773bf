"""Request bodies: JSON bytes in, a validated pydantic model out, or one `InvalidRequest` that says what is wrong.

Owns the wording of validation errors. A body may hold thousands of mistakes and megabytes of text; the client is told
the first mistake, by its path, with at most a glimpse of what it sent. Knows no protocol and no field by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from engines.errors import InvalidRequest

MAX_PATH_CHARS = 120
MAX_GLIMPSE_CHARS = 60
MAX_MESSAGE_CHARS = 500

WIRE_CONFIG = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class WireModel(BaseModel):
    """Base of every request body: JSON types are taken as they are, unknown fields are refused, null means absent."""

    model_config = WIRE_CONFIG

    # Fields whose items are chosen among by a discriminator: position of the chosen arm's name in an error's path.
    arm_positions: ClassVar[Mapping[str, int]] = {}


Model = TypeVar("Model", bound=WireModel)


def parse_body(model: type[Model], body: bytes, *, tolerant: bool = False) -> Model:
    """Raises InvalidRequest for malformed JSON (with its position) and for the first field that does not validate.

    `tolerant`: fields that are not known are passed over, wherever they stand.
    """
    try:
        return model.model_validate_json(body, extra="ignore" if tolerant else None)
    except ValidationError as error:
        raise _first_mistake(error, model.arm_positions) from None


def refuse(field: str, message: str, *, code: str = "invalid_value") -> NoReturn:
    """Refuse a field for a reason that its type cannot express."""
    raise InvalidRequest(f"{field}: {message}", field=field, code=code)


# --- field types that several models share ---------------------------------------------------------------------------


def tagged(tag: str) -> str:
    """A name for one arm of a union, marked so that it is left out of the paths shown to clients."""
    return f"<{tag}>"


def by_type(*known: str, otherwise: str = "other") -> Discriminator:
    """Chooses a union's arm by its `type`: one of `known`, else the arm "other". What has no type is `otherwise`."""

    def kind(value: object) -> str:
        if not isinstance(value, dict):
            return tagged("other")
        named: object = value.get("type", otherwise)  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        return tagged(named) if isinstance(named, str) and named in known else tagged("other")

    return Discriminator(kind)


def refused_type(*known: str) -> AfterValidator:
    """Refuses the `type` of the arm "other", naming those there are."""

    def refuse_it(_: str) -> str:
        raise PydanticCustomError("unknown_type", "must be one of {known}", {"known": ", ".join(map(repr, known))})

    return AfterValidator(refuse_it)


@dataclass(frozen=True, slots=True)
class NoEffect:
    """Marks a field that is accepted and checked, and changes nothing in what our own engines answer."""

    reason: str

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "description": f"No effect: {self.reason}"}


@dataclass(frozen=True, slots=True)
class Refused:
    """Marks a field that is known and refused, unless it is null or one of the `harmless` values, which ask nothing."""

    reason: str
    harmless: tuple[object, ...] = ()

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": [None, *self.harmless], "description": f"Refused: {self.reason}"}

    def _check(self, value: object) -> None:
        if value is not None and value not in self.harmless:
            raise PydanticCustomError("unsupported", "{reason}", {"reason": self.reason})


def reasons(model: type[BaseModel], mark: type[NoEffect] | type[Refused]) -> dict[str, str]:
    """The model's fields that carry `mark`, each with the reason it gives."""
    return {
        name: annotation.reason
        for name, field in model.model_fields.items()
        for annotation in field.metadata
        if isinstance(annotation, mark)
    }


# --- wording ----------------------------------------------------------------------------------------------------------


def clip(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _first_mistake(error: ValidationError, arm_positions: Mapping[str, int]) -> InvalidRequest:
    mistake = error.errors(include_url=False)[0]
    kind, loc = mistake["type"], mistake["loc"]
    context: Mapping[str, Any] = mistake.get("ctx", {})
    if kind == "json_invalid":
        return InvalidRequest(f"The request body is not valid JSON: {context['error']}", code="invalid_json")
    if not loc and kind in ("model_type", "model_attributes_type", "dict_type"):
        return InvalidRequest("The request body must be a JSON object.", code="invalid_type")
    arm = arm_positions.get(str(loc[0])) if loc else None
    if arm is not None and len(loc) > arm:
        loc = (*loc[:arm], *loc[arm + 1 :])
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        loc = (*loc, context["discriminator"].strip("'"))
    path = field_path(loc, ends_in_key=kind == "extra_forbidden")
    message, code = _wording(kind, mistake["msg"], context)
    glimpse = "" if kind in _WITHOUT_GLIMPSE else _glimpse(context.get("tag", mistake["input"]))
    text = clip(f"{path}: {message}{glimpse}" if path else f"{message}{glimpse}", MAX_MESSAGE_CHARS)
    return InvalidRequest(text, field=path or None, code=code)


_WITHOUT_GLIMPSE = frozenset(
    {"missing", "extra_forbidden", "unsupported", "union_tag_not_found", "too_short", "too_long", "prompt", "secret"}
)
_SUBJECT = re.compile(r"^\w+ should ")  # pydantic's "Input should be ...", "List should have ..."


def _wording(kind: str, message: str, context: Mapping[str, Any]) -> tuple[str, str]:
    """What to say, and OpenAI's error code for it."""
    match kind:
        case "missing" | "union_tag_not_found":
            return "this field is required", "missing_required_parameter"
        case "extra_forbidden":
            return "this field is not known", "unknown_parameter"
        case "unsupported":
            return message, "unsupported_parameter"
        case "union_tag_invalid":
            return f"must be one of {context['expected_tags']}", "invalid_value"
        case _:
            code = "invalid_type" if kind.endswith("_type") else "invalid_value"
            return _SUBJECT.sub("must ", message).replace(" after validation", ""), code


def field_path(loc: Sequence[str | int], *, ends_in_key: bool = False) -> str:
    """`("messages", 1, "content", "<parts>", 0)` as `messages[1].content[0]`: union arms mean nothing to a client.

    `ends_in_key`: the last step is a key that the client chose, whatever it looks like.
    """
    path = ""
    last = len(loc) - 1
    for position, step in enumerate(loc):
        if isinstance(step, int):
            path += f"[{step}]"
        elif (ends_in_key and position == last) or not (step.startswith("<") and step.endswith(">")):
            path += f".{step}" if path else step
    return clip(path, MAX_PATH_CHARS)


def _glimpse(value: object) -> str:
    """A short look at what was sent: scalars as they are, the rest by kind."""
    if value is None:
        return " (got null)"
    if isinstance(value, bool):
        return f" (got {str(value).lower()})"
    if isinstance(value, int):
        return f" (got {value})" if abs(value) < 10**MAX_GLIMPSE_CHARS else " (got a huge number)"
    if isinstance(value, float):
        return f" (got {value})"
    if isinstance(value, str):
        return f" (got {clip(repr(value[:MAX_GLIMPSE_CHARS]), MAX_GLIMPSE_CHARS)})"
    return " (got an array)" if isinstance(value, list | tuple) else " (got an object)"
