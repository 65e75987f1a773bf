"""Calls an ASGI application and looks at every message: what a real server would have written, and when."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.types import Message

from gateway.app import GatewayOptions, create_app
from tests.gateway.scripted import ScriptedEngine

JSON_HEADERS = {"content-type": "application/json"}


def app_of(*engines: Any, **options: Any) -> Starlette:
    return create_app(engines or (ScriptedEngine(),), options=GatewayOptions(**options))


class Call:
    """One request in flight. `start` begins it; `sent` grows as the application answers; `leave` is a disconnect."""

    def __init__(
        self,
        app: Any,
        method: str = "GET",
        path: str = "/",
        body: bytes | Sequence[bytes] = b"",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._app = app
        self._chunks = [body] if isinstance(body, bytes) else list(body)
        self._gone = asyncio.Event()
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        self.sent: list[Message] = []
        self.num_received = 0
        self.open_gate = asyncio.Event()  # cleared: `send` waits, as for a client that does not read
        self.open_gate.set()

    def start(self) -> asyncio.Task[None]:
        return asyncio.create_task(self._app(self.scope, self._receive, self._send))

    async def run(self) -> Call:
        await self.start()
        return self

    def leave(self) -> None:
        self._gone.set()

    @property
    def status(self) -> int:
        return self.sent[0]["status"] if self.sent else 0

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def writes(self) -> list[bytes]:
        return [message.get("body", b"") for message in self.sent[1:]]

    @property
    def body(self) -> bytes:
        return b"".join(self.writes)

    @property
    def complete(self) -> bool:
        return len(self.sent) > 1 and not self.sent[-1].get("more_body", False)

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The stream's events; `[DONE]` as that string."""
        frames = self.body.decode().split("\n\n")
        assert frames.pop() == "", "the stream ends inside an event"
        assert all(frame.startswith("data: ") for frame in frames), frames
        payloads = [frame.removeprefix("data: ") for frame in frames]
        return [payload if payload == "[DONE]" else json.loads(payload) for payload in payloads]

    async def _receive(self) -> Message:
        self.num_received += 1
        if self._chunks:
            chunk = self._chunks.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(self._chunks)}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await self.open_gate.wait()
        if not self._gone.is_set():
            self.sent.append(message)
        if self.complete:
            self._gone.set()  # as servers do: after the answer there is nothing more to receive


def post(app: Any, path: str, fields: Any, headers: Mapping[str, str] | None = None) -> Call:
    return Call(app, "POST", path, json.dumps(fields).encode(), {**JSON_HEADERS, **(headers or {})})


def chat(app: Any, *, stream: bool = True, headers: Mapping[str, str] | None = None, **fields: Any) -> Call:
    body = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}], "stream": stream, **fields}
    return post(app, "/v1/chat/completions", body, headers)


def complete(app: Any, *, stream: bool = True, **fields: Any) -> Call:
    return post(app, "/v1/completions", {"model": "scripted", "prompt": "Hi", "stream": stream, **fields})
