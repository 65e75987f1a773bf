"""`headrace watermark detect`: asks a running server how surely a text carries a mark, and shows where.

A client of POST /v1/watermark/detect: the server has the model's tokenizer, and the key unless one is given.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.text import Text

from gateway.cli.chat import ChatError, error_message


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectOptions:
    """None: the server decides. The key comes from a file, since process lists show flags."""

    file: str
    url: str
    model: str | None = None
    scheme: str | None = None
    key_file: str | None = None
    false_positive_rate: float | None = None
    api_key: str | None = None
    as_json: bool = False


def detect(options: DetectOptions, console: Console) -> int:
    """Prints the verdict, the numbers behind it, and the text in colours. Returns the process's exit code."""
    try:
        body = _body(options)
        answer = _ask(options, body)
    except (ChatError, OSError, UnicodeDecodeError) as error:
        console.print(f"[bold red]headrace: error:[/bold red] {error}", soft_wrap=True, highlight=False)
        return 1
    if options.as_json:
        console.print_json(data=answer)
        return 0
    verdict = "[bold green]watermarked[/bold green]" if answer["watermarked"] else "[bold]no watermark found[/bold]"
    console.print(
        f"{verdict}  scheme {answer['scheme']}, p-value {answer['p_value']:.3g} (verdict at "
        f"{answer['false_positive_rate']:g}), z {answer['z_score']:.2f}, {answer['num_tokens_scored']} of "
        f"{answer['num_tokens']} tokens scored",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_coloured(answer["tokens"]), soft_wrap=True)
    return 0


def _body(options: DetectOptions) -> dict[str, Any]:
    text = sys.stdin.read() if options.file == "-" else Path(options.file).read_text(encoding="utf-8")
    key = Path(options.key_file).read_text(encoding="utf-8").strip() if options.key_file else None
    wanted = {
        "text": text,
        "model": options.model,
        "scheme": options.scheme,
        "key": key,
        "false_positive_rate": options.false_positive_rate,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _ask(options: DetectOptions, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    try:
        response = httpx.post(
            options.url.rstrip("/") + "/watermark/detect", json=body, headers=headers, timeout=httpx.Timeout(300)
        )
    except httpx.HTTPError as error:
        raise ChatError(f"no server answers at {options.url}; start one with: headrace serve") from error
    if response.is_error:
        raise ChatError(error_message(response.text, response.status_code))
    return response.json()


def _coloured(tokens: list[dict[str, Any]]) -> Text:
    """What speaks for the mark in green, what speaks against it in red, the rest dim."""
    text = Text()
    for token in tokens:
        mark = token["mark"]
        text.append(token["text"], style="dim" if mark is None else "green" if mark > 0.5 else "red")
    return text
