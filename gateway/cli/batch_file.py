"""The two files of `headrace batch`, in the format of OpenAI's Batch API: requests, and answers so far.

Knows lines, not servers. The answers' file is its own record of what was done: a line is written whole or, where a
process was killed in the middle of one, dropped by the next run.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

_SHOWN_PROBLEMS = 10
_BEGINNING = b'{"id": "batch_req_'  # of every line that is written here
FINAL = frozenset({200, 400, 413, 422})
"""Statuses that the same request would get again. After any other, a rerun asks again: the server or its key may be
another by then."""


class BatchFileError(Exception):
    """A file cannot be used as it is. `problems`: a line for each, written for the user."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class BatchRequest:
    custom_id: str
    url: str  # /v1/...
    body: bytes  # JSON


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """What became of a request. `status` 0: nothing came back, and `error` says why."""

    custom_id: str
    status: int
    request_id: str = ""
    body: Any = None
    error: str = ""

    def used(self, *names: str) -> int:
        """Tokens that its usage counts under the first of these names that it has; 0 where it has none."""
        for name in names:
            with contextlib.suppress(LookupError, TypeError, ValueError):
                return int(self.body["usage"][name])
        return 0


class _Line(BaseModel):
    """One line of the requests' file."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    custom_id: str = Field(min_length=1)
    method: Literal["POST"]
    url: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]
    body: dict[str, Any]


# --- requests ---------------------------------------------------------------------------------------------------------


def read_requests(path: Path) -> list[BatchRequest]:
    """All of them, in the file's order; empty lines are passed over. Raises BatchFileError naming lines and fields."""
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise BatchFileError(f"cannot read {path}: {error.strerror}") from error
    requests: list[BatchRequest] = []
    problems: list[str] = []
    places: dict[str, int] = {}
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = _Line.model_validate_json(text)
        except ValidationError as error:
            problems += [f"{path}: line {number}: {problem}" for problem in _explained(error)]
            continue
        first = places.setdefault(line.custom_id, number)
        if first != number:
            problems.append(f"{path}: line {number}: custom_id: {line.custom_id!r} is that of line {first} already")
        if line.body.get("stream"):
            problems.append(f"{path}: line {number}: body.stream: a batch's answers come whole; leave it out")
        requests.append(BatchRequest(line.custom_id, line.url, json.dumps(line.body).encode("ascii")))
    if not requests and not problems:
        problems.append(f"{path}: holds no request")
    if problems:
        more = len(problems) - _SHOWN_PROBLEMS
        raise BatchFileError(*problems[:_SHOWN_PROBLEMS], *([f"... and {more} more like these"] if more > 0 else ()))
    return requests


def _explained(error: ValidationError) -> list[str]:
    return [
        ": ".join(filter(None, (".".join(map(str, problem["loc"])), problem["msg"])))
        for problem in error.errors(include_url=False, include_input=False)
    ]


# --- answers ----------------------------------------------------------------------------------------------------------


class AnswerFile:
    """Open for appending. `statuses`: the final answers of earlier runs, by custom_id."""

    def __init__(self, file: BinaryIO, statuses: Mapping[str, int]) -> None:
        self._file = file
        self.statuses = statuses

    def write(self, answer: BatchAnswer) -> None:
        """Whole and at once, so that nothing but a killed process leaves half a line. Raises OSError."""
        self._file.write(_rendered(answer))
        self._file.flush()


@contextlib.contextmanager
def open_answers(path: Path, custom_ids: Collection[str]) -> Generator[AnswerFile, None, None]:
    """Keeps the final answers that the file has, and drops what is to be asked again: failures, and a torn last line.

    Raises BatchFileError where it holds anything else, or another run writes to it; OSError.
    """
    file = _locked(path)
    try:
        file.seek(0)
        found = file.read()
        kept, statuses = _final_lines(path, found, custom_ids)
        if kept != found:
            fresh = _locked(path.with_name(path.name + ".new"), empty=True)
            file, _ = fresh, file.close()
            file.write(kept)
            file.flush()
            os.replace(file.name, path)  # locked before it has the name, so no other run comes in between
        yield AnswerFile(file, statuses)
    finally:
        file.close()


def _locked(path: Path, *, empty: bool = False) -> BinaryIO:
    file = path.open("w+b" if empty else "a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise BatchFileError(f"{path}: another run is writing to it") from error
    except OSError:
        pass  # a file system without locks
    return file


def _final_lines(path: Path, found: bytes, custom_ids: Collection[str]) -> tuple[bytes, dict[str, int]]:
    kept: list[bytes] = []
    statuses: dict[str, int] = {}
    *whole, last = found.split(b"\n")  # what follows the last line's end is empty, or torn
    for number, text in enumerate((*whole, last), 1):
        parsed = _status(text)
        if parsed is None:
            torn = number > len(whole) and _BEGINNING.startswith(text[: len(_BEGINNING)])
            if text.strip() and not torn:
                raise BatchFileError(f"{path}: line {number}: not a batch's answer; name another file with --output")
            continue
        custom_id, status = parsed
        if custom_id not in custom_ids:
            problem = f"{custom_id!r} is not among the requests, so this is another batch's"
            raise BatchFileError(f"{path}: line {number}: custom_id: {problem}; name another file with --output")
        if status in FINAL and custom_id not in statuses:
            kept.append(text + b"\n")
            statuses[custom_id] = status
    return b"".join(kept), statuses


def _status(text: bytes) -> tuple[str, int] | None:
    """The custom_id of an answer's line and its status, 0 where there was no response. None: not such a line."""
    try:
        line: Any = json.loads(text)
        custom_id, response = line["custom_id"], line["response"]
        status = 0 if response is None else response["status_code"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return (custom_id, status) if isinstance(custom_id, str) and isinstance(status, int) else None


def _rendered(answer: BatchAnswer) -> bytes:
    """ASCII, so that any text survives, and no reader takes a separator inside a text for the end of a line."""
    response = {"status_code": answer.status, "request_id": answer.request_id, "body": answer.body}
    line = {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": answer.custom_id,
        "response": response if answer.status else None,
        "error": None if answer.status else {"code": "no_response", "message": answer.error},
    }
    return json.dumps(line).encode("ascii") + b"\n"
