"""`headrace chat`: a conversation with any OpenAI-compatible server, streamed to the terminal.

A client like any other: it knows the wire, not our engines. Ctrl-C ends an answer and keeps what was said.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from rich.console import Console

HELP = "/new forgets the conversation, /quit ends. Ctrl-C stops an answer."


class ChatError(Exception):
    """The server cannot be talked to, or refused; the message is for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    url: str
    model: str | None = None  # None: the first that the server lists
    system: str | None = None
    temperature: float | None = None
    api_key: str | None = None


@dataclass(slots=True)
class Conversation:
    """What was said, and how to ask for the next answer."""

    client: httpx.Client
    model: str
    options: ChatOptions
    messages: list[dict[str, str]] = field(default_factory=list[dict[str, str]])

    def reset(self) -> None:
        self.messages = [{"role": "system", "content": self.options.system}] if self.options.system else []

    def ask(self, text: str) -> Generator[str, None, None]:
        """Pieces of the answer. What was received counts as said, also when the iterator is closed early."""
        self.messages.append({"role": "user", "content": text})
        body: dict[str, Any] = {"model": self.model, "messages": self.messages, "stream": True}
        if self.options.temperature is not None:
            body["temperature"] = self.options.temperature
        said: list[str] = []
        try:
            for piece in self._stream(body):
                said.append(piece)
                yield piece
        finally:
            if said:
                self.messages.append({"role": "assistant", "content": "".join(said)})
            else:
                self.messages.pop()  # a question without an answer would spoil the next one

    def _stream(self, body: dict[str, Any]) -> Iterator[str]:
        try:
            with self.client.stream("POST", "chat/completions", json=body) as response:
                if response.is_error:
                    response.read()
                    raise ChatError(error_message(response.text, response.status_code))
                for line in response.iter_lines():
                    data = line.removeprefix("data:").strip()
                    if line.startswith("data:") and data != "[DONE]":
                        yield from _text_of(data)
        except httpx.HTTPError as error:
            raise ChatError(f"the connection to {self.options.url} broke ({type(error).__name__})") from error


def _text_of(data: str) -> Iterator[str]:
    chunk = json.loads(data)
    if "error" in chunk:
        raise ChatError(error_message(data, 0))
    for choice in chunk["choices"]:
        if text := choice["delta"].get("content"):
            yield text


def error_message(body: str, status: int) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered with status {status}"


def chat(options: ChatOptions, console: Console) -> int:
    """Read lines, print answers, until /quit or the end of input. Returns the process's exit code."""
    headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    timeout = httpx.Timeout(None, connect=5.0)
    with httpx.Client(base_url=options.url.rstrip("/") + "/", headers=headers, timeout=timeout) as client:
        try:
            conversation = Conversation(client, options.model or _first_model(client, options.url), options)
        except ChatError as error:
            console.print(f"[bold red]headrace: error:[/bold red] {error}", soft_wrap=True)
            return 1
        conversation.reset()
        console.print(f"Talking to [bold]{conversation.model}[/bold]. {HELP}", highlight=False)
        with contextlib.suppress(EOFError):
            while _turn(conversation, console):
                pass
    return 0


def _first_model(client: httpx.Client, url: str) -> str:
    try:
        response = client.get("models")
        if response.is_error:
            raise ChatError(error_message(response.text, response.status_code))
        return str(response.json()["data"][0]["id"])
    except httpx.HTTPError as error:
        raise ChatError(f"no server answers at {url}; start one with: headrace serve") from error
    except (ValueError, LookupError, TypeError) as error:
        raise ChatError(f"{url} lists no models; name one with --model") from error


def _turn(conversation: Conversation, console: Console) -> bool:
    """One question and its answer; False ends the conversation. Raises EOFError at the end of input."""
    try:
        text = console.input("[bold cyan]>[/bold cyan] ").strip()
    except KeyboardInterrupt:
        console.print()
        return False
    match text:
        case "":
            return True
        case "/quit" | "/exit":
            return False
        case "/new":
            conversation.reset()
            return True
        case _ if text.startswith("/"):
            console.print(HELP, highlight=False)
            return True
        case _:
            _answer(conversation, text, console)
            return True


def _answer(conversation: Conversation, text: str, console: Console) -> None:
    started, pieces = time.perf_counter(), 0
    try:
        with contextlib.closing(conversation.ask(text)) as answer:
            for piece in answer:
                pieces += 1
                console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        console.print(" [dim](stopped)[/dim]", end="")
    except ChatError as error:
        console.print(f"[red]{error}[/red]", highlight=False, soft_wrap=True)
        return
    elapsed_s = time.perf_counter() - started
    console.print(f"\n[dim]{pieces} pieces in {elapsed_s:.1f} s[/dim]", highlight=False)
