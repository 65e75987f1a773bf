"""OpenAI's generating routes as TGI's users know them: their requests are taken where OpenAI's own would be refused.

`Dialect` stands before an OpenAI adapter and rewrites what differs in a request's JSON; answers are OpenAI's. A body
that it cannot read is left to the adapter, which says what is wrong. What is rewritten and why is docs/tgi.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from adapters.adapter import Adapter, Exchange
from adapters.raw_json import raw_fields
from adapters.wire import WireModel, refuse
from engines.errors import HeadraceError


class Dialect:
    """`model` is the wire model of the adapter's requests; `max_prompts` the most prompts of one completion request."""

    def __init__(
        self, adapter: Adapter, model: type[WireModel], default_model: Callable[[], str], max_prompts: int
    ) -> None:
        self._adapter = adapter
        self._known = frozenset(field.alias or name for name, field in model.model_fields.items())
        self._default_model = default_model
        self._max_prompts = max_prompts

    def parse(self, body: bytes, headers: Mapping[str, str], request_id: str) -> Exchange:
        fields = raw_fields(body)
        if fields is None:
            return self._adapter.parse(body, headers, request_id)
        ignored = [name for name in fields if name not in self._known]
        for name in ignored:
            del fields[name]
        if bytes(fields.get("logit_bias", b"")).startswith(b"["):  # TGI's type for it, which it never looked at
            del fields["logit_bias"]
            ignored.append("logit_bias")
        self._check_prompts(fields)
        rewritten: dict[str, Any] = {"model": self._default_model(), **fields}
        if bytes(fields.get("model", b"")) in (b"null", b'"tgi"'):
            rewritten["model"] = self._default_model()
        if "messages" in fields:
            rewritten |= _conversation(fields)
        exchange = self._adapter.parse(msgspec.json.encode(rewritten), headers, request_id)
        return Told(exchange, ignored) if ignored else exchange

    def error(self, error: HeadraceError, status: int) -> bytes:
        return self._adapter.error(error, status)

    def _check_prompts(self, fields: Mapping[str, msgspec.Raw]) -> None:
        try:
            count = len(_decode_prompts(fields["prompt"])) if "prompt" in fields else 0
        except msgspec.DecodeError:
            return  # a single text or token ids, or what the adapter refuses
        if count > self._max_prompts:
            refuse("prompt", f"this server takes at most {self._max_prompts} prompts at once (got {count})")


class Told:
    """An exchange that also tells which fields of its request nobody looked at."""

    def __init__(self, exchange: Exchange, ignored: Sequence[str]) -> None:
        self.ignored = ignored
        self.requests = exchange.requests
        self.stream = exchange.stream
        self.response = exchange.response
        self.frame = exchange.frame
        self.end = exchange.end
        self.stream_error = exchange.stream_error


def _conversation(fields: Mapping[str, msgspec.Raw]) -> dict[str, Any]:
    """What a conversation's messages change: a final assistant's message is continued, results of tools get ids."""
    raw = fields["messages"]
    try:
        messages = _decode_messages(raw)
    except msgspec.DecodeError:
        return {}
    if not messages:
        return {}
    changed: dict[str, Any] = {}
    last = messages[-1]
    says = "add_generation_prompt" in fields or "continue_final_message" in fields
    if last.get("role") == "assistant" and isinstance(last.get("content"), str) and not says:
        changed["continue_final_message"] = True
    missing = [message for message in messages if message.get("role") == "tool" and not message.get("tool_call_id")]
    for message in missing:
        message["tool_call_id"] = "0"  # TGI's clients know no such field; its calls had the id "0"
    if missing:
        changed["messages"] = messages
    return changed


_decode_messages = msgspec.json.Decoder(list[dict[str, Any]]).decode
_decode_prompts = msgspec.json.Decoder(list[str]).decode
