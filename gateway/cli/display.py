"""What a person at the terminal sees of a start: progress bars, then one table. Knows no engine's insides."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from config.server import ServerSection
from engines.api import Engine

_ENDPOINTS = "endpoints"


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """One engine in words, in a form that crosses processes: `facts` are the table's rows."""

    names: tuple[str, ...]
    facts: Mapping[str, str]


def describe(engine: Engine, kind: str) -> EngineFacts:
    """A started engine. One that has a core of its own says more, through `ready`."""
    cards = engine.models
    facts = {"engine": kind}
    ready = getattr(engine, "ready", None)
    if ready is not None:
        facts |= {
            "architecture": ready.architecture,
            "device": ready.device,
            "dtype": ready.dtype,
            **({"quantization": ready.quantization} if ready.quantization else {}),
            "attention": ready.attention_backend,
            **({"KV capacity": f"{ready.kv_capacity_tokens:,} tokens"} if ready.kv_capacity_tokens else {}),
            **({} if ready.generates else {"task": f"embed, {ready.embedding_size} numbers a vector"}),
        }
        if ready.tensor_parallel_size > 1:
            facts["ranks"] = f"{ready.tensor_parallel_size}, sums by {ready.all_reduce}"
    lengths = {card.max_model_len for card in cards if card.max_model_len is not None}
    if lengths:
        facts["context"] = f"{max(lengths):,} tokens"
    return EngineFacts(tuple(name for card in cards for name in (card.name, *card.aliases)), facts)


class Display:
    """Start-up on one console. On a terminal progress is bars; elsewhere it is one line per finished stage."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._console = Console(file=stream, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._told: set[str] = set()

    def progress(self, stage: str, done: int, total: int) -> None:
        """An engine's report: `done` of `total` bytes. May be called from any thread."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
            self._progress.start()
        self._progress.update(self._tasks[stage], completed=done, total=total)
        if done >= total and stage not in self._told:
            self._told.add(stage)
            if self._progress.disable:
                self.say(f"{stage}: {total / 1e6:.0f} MB")

    def close_progress(self) -> None:
        self._progress.stop()

    def ready(self, engines: Sequence[EngineFacts], url: str, paths: Sequence[str], num_workers: int) -> None:
        """The table that says: able to answer."""
        self.close_progress()
        rows = list(dict.fromkeys(name for engine in engines for name in engine.facts))
        width = max(len(name) for name in (*rows, _ENDPOINTS))
        table = _grid(width, num_columns=len(engines))
        table.add_row("model", *(f"[bold]{_escaped(', '.join(engine.names))}[/bold]" for engine in engines))
        for row in rows:
            table.add_row(row, *(_escaped(engine.facts.get(row, "")) for engine in engines))
        self._console.print(table)
        below = _grid(width, num_columns=1)
        below.add_row(_ENDPOINTS, " ".join(paths))
        self._console.print(below)
        workers = f" ({num_workers} processes)" if num_workers > 1 else ""
        ready = f"[bold green]Ready[/bold green] at [bold]{_escaped(url)}/v1[/bold]{workers}. Ctrl-C stops."
        self._console.print(ready, soft_wrap=True)

    def stopping(self, server: ServerSection) -> None:
        self.say(f"Stopping: open requests get {server.shutdown_timeout_s:g} s. Ctrl-C again stops at once.")

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def error(self, text: str) -> None:
        self.close_progress()
        for line in text.splitlines():
            self._console.print(f"[bold red]headrace: error:[/bold red] {_escaped(line)}", soft_wrap=True)


def _grid(width: int, num_columns: int) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True, min_width=width)
    for _ in range(num_columns):
        table.add_column(overflow="fold")
    return table


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")
