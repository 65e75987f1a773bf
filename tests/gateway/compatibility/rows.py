"""What a table of the compatibility page is made of: one row a field, with a request that shows what becomes of it.

Owns the words for a row and how answers of different protocols are looked at. Knows no route and no field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import httpx
from pydantic import BaseModel

Status = Literal["honoured", "no effect", "refused"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer, whatever its protocol."""

    status: int
    headers: Mapping[str, str]
    body: str

    @property
    def is_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        frames = [line.removeprefix("data:").strip() for line in self.body.split("\n") if line.startswith("data:")]
        return [json.loads(frame) for frame in frames if frame != "[DONE]"]

    @property
    def choices(self) -> list[Any]:
        return self.json["choices"]

    @property
    def message(self) -> Any:
        return self.choices[0]["message"]

    @property
    def text(self) -> str:
        """Everything that the model said, in whichever protocol."""
        body = self.json[0] if isinstance(self.json, list) else self.json
        if "generated_text" in body:
            return body["generated_text"]
        return "".join(_words(body.get("choices") or body.get("output") or body["content"]))

    @property
    def complaint(self) -> tuple[str, str | None]:
        """What an error says, and the field that it names where its protocol has a place for that."""
        error = self.json["error"]
        return (error, None) if isinstance(error, str) else (error["message"], error.get("param"))

    def count(self, *names: str) -> int:
        """A number of the answer's usage, under the first of `names` that it has."""
        usage = self.json["usage"]
        return next(usage[name] for name in names if name in usage)

    @property
    def num_prompt(self) -> int:
        return self.count("prompt_tokens", "input_tokens")

    @property
    def num_generated(self) -> int:
        return self.count("completion_tokens", "output_tokens")

    @property
    def num_cached(self) -> int:
        return self.count("prompt_tokens_details", "input_tokens_details")["cached_tokens"]  # type: ignore[index]

    @property
    def num_reasoning(self) -> int:
        details: Any = self.json["usage"]
        details = details.get("completion_tokens_details") or details.get("output_tokens_details") or {}
        return details.get("reasoning_tokens", 0)


_SAYING = {"text", "content", "reasoning", "thinking", "name", "arguments"}


def _words(answer: Any) -> Iterator[str]:
    """What a model said, wherever in an answer it stands."""
    if isinstance(answer, list):
        for item in answer:
            yield from _words(item)
    elif isinstance(answer, dict):
        for name, value in answer.items():
            if isinstance(value, str):
                yield from [value] if name in _SAYING else []
            else:
                yield from _words(value)


_PASSING = {
    "id",
    "call_id",
    "created",
    "created_at",
    "completed_at",
    "prompt_tokens_details",
    "input_tokens_details",
    "input_tokens",
    "cache_read_input_tokens",
}


def _lasting(body: Any, *more: str) -> Any:
    """The body without what differs from one request to the next anyway, and without fields of the names `more`."""
    if isinstance(body, dict):
        return {name: _lasting(value, *more) for name, value in body.items() if name not in _PASSING | {*more}}
    return [_lasting(value, *more) for value in body] if isinstance(body, list) else body


Check = Callable[[Answer, Answer], bool]
"""Whether the first answer, to a request with the field, shows what it should beside the second, without it."""


def differs(told: Answer, plain: Answer) -> bool:
    return told.text != plain.text


def same(told: Answer, plain: Answer, field: str) -> bool:
    """Nothing but the field itself, which some protocols repeat, tells the two apart."""
    name = field.split(".")[0]
    return _lasting(told.json, name) == _lasting(plain.json, name)


def longer_prompt(told: Answer, plain: Answer) -> bool:
    return told.num_prompt > plain.num_prompt


def is_stream(told: Answer, plain: Answer) -> bool:
    return told.is_stream and len(told.events) > 1 and not plain.is_stream


Probe = Callable[[httpx.Client], bool]
"""Whether a field that one answer cannot show does what it should."""


def generates(count: int) -> Check:
    return lambda told, plain: told.num_generated == count != plain.num_generated


def says(*texts: str) -> Check:
    return lambda told, plain: told.text in texts and plain.text not in texts


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One field. `needs` are fields that both requests have. Where `check` and `probe` are None, what is asked of the
    engine is compared, because this model's answers could not show it."""

    field: str
    status: Status
    value: Any
    needs: Mapping[str, Any] = field(default_factory=dict)
    check: Check | None = differs
    probe: Probe | None = None
    note: str = ""
    setting: str = ""  # without which an honoured field is refused
    unknown: bool = False  # the wire model has no such field, so it is refused like any other that nobody knows

    @property
    def name(self) -> str:
        """The field of the request that it is, or is a part of."""
        return self.field.split(".")[0]


def honoured(
    name: str,
    value: Any,
    check: Check | None = differs,
    needs: Mapping[str, Any] | None = None,
    note: str = "",
    setting: str = "",
) -> Row:
    return Row(field=name, status="honoured", value=value, check=check, needs=needs or {}, note=note, setting=setting)


def probed(name: str, probe: Probe, note: str = "") -> Row:
    return Row(field=name, status="honoured", value=None, check=None, probe=probe, note=note)


def no_effect(name: str, value: Any, note: str = "", needs: Mapping[str, Any] | None = None) -> Row:
    return Row(field=name, status="no effect", value=value, note=note, needs=needs or {})


def refused(name: str, value: Any, note: str = "", needs: Mapping[str, Any] | None = None) -> Row:
    return Row(field=name, status="refused", value=value, note=note, needs=needs or {})


def unknown(fields: Mapping[str, tuple[Any, str]]) -> tuple[Row, ...]:
    """Peers' fields that this server does not know: name to a value and what to do instead."""
    return tuple(replace(refused(name, value, note), unknown=True) for name, (value, note) in fields.items())


OTHERWISE = "otherwise"  # a peer's status for what is not named: "ignored" where this is not said


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A route's fields. `model` is the wire model that has them, and `prefix` where in a request that model stands."""

    path: str
    body: Mapping[str, Any]
    model: type[BaseModel]
    rows: Sequence[Row]
    peers: Mapping[str, Mapping[str, str]]  # by peer: names by status
    prefix: str = ""

    def request(self, row: Row) -> tuple[dict[str, Any], dict[str, Any]]:
        """The body with the field, and the one without."""
        plain = dict(self.body)
        for name, value in row.needs.items():
            plain = placed(plain, self.prefix + name, value)
        return placed(plain, self.prefix + row.field, row.value), plain

    def peer_status(self, peer: str, row: Row) -> str:
        told = self.peers[peer]
        by_name = {name: status for status, names in told.items() if status != OTHERWISE for name in names.split()}
        return by_name.get(row.field) or by_name.get(row.name, told.get(OTHERWISE, "ignored"))


def placed(body: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The body with `value` at a dotted path."""
    name, _, rest = path.partition(".")
    return {**body, name: placed(body.get(name) or {}, rest, value) if rest else value}
