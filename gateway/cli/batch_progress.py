"""How far a `headrace batch` is: counts, the summary made of them, and what a person sees while it runs."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gateway.cli.batch_file import FINAL, BatchAnswer


@dataclass(slots=True)
class Tally:
    """What the file of answers holds; tokens and time are this run's."""

    num_requests: int
    num_before: int
    statuses: Counter[int]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    started_at: float = field(default_factory=time.perf_counter)

    def add(self, answer: BatchAnswer) -> None:
        self.statuses[answer.status] += 1
        self.prompt_tokens += answer.used("prompt_tokens", "input_tokens")
        self.completion_tokens += answer.used("completion_tokens", "output_tokens")

    @property
    def complete(self) -> bool:
        return self.statuses[200] == self.num_requests

    @property
    def num_unfinished(self) -> int:
        """What a rerun would ask."""
        return self.num_requests - sum(self.statuses[status] for status in FINAL)

    def summary(self) -> str:
        refused = sum(count for status, count in self.statuses.items() if 400 <= status < 500)
        failed = self.statuses.total() - self.statuses[200] - refused
        open_ = self.num_requests - self.statuses.total()
        counts = [f"{self.statuses[200]} of {self.num_requests} requests answered"]
        counts += [
            f"{count} {word}" for count, word in ((refused, "refused"), (failed, "failed"), (open_, "open")) if count
        ]
        if self.num_before:
            counts.append(f"{self.num_before} of them in earlier runs")
        elapsed_s = time.perf_counter() - self.started_at
        tokens = f"{self.prompt_tokens} tokens in, {self.completion_tokens} out in {elapsed_s:.1f} s"
        return f"{', '.join(counts)}; {tokens} ({self.completion_tokens / elapsed_s:.1f} tokens/s)"


class Bar:
    """A bar on a terminal; elsewhere a line for every tenth of the requests."""

    def __init__(self, tally: Tally) -> None:
        self._console = Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        done = tally.statuses.total()
        self._task = self._progress.add_task("requests", completed=done, total=tally.num_requests)
        self._tenth = 10 * done // tally.num_requests

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, tally: Tally) -> None:
        done = tally.statuses.total()
        self._progress.update(self._task, completed=done)
        tenth = 10 * done // tally.num_requests
        if self._progress.disable and tenth > self._tenth:
            self._tenth = tenth
            self._console.print(f"{done} of {tally.num_requests} requests", soft_wrap=True)
