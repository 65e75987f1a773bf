"""`headrace batch`: every request of a file, answered into another one, by a server or by engines of its own.

Without a URL the gateway's application runs in this process and is called without a socket; the requests take the same
way through it. An interrupted run loses only the requests that were open.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvloop

from config.server import ServerSection
from config.settings import Loaded
from engines.errors import HeadraceError
from gateway.cli.batch_file import (
    AnswerFile,
    BatchAnswer,
    BatchFileError,
    BatchRequest,
    open_answers,
    read_requests,
)
from gateway.cli.batch_progress import Bar, Tally
from gateway.cli.display import Display

_RETRY_DELAYS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
_LONGEST_RETRY_AFTER_S = 60.0
_CONNECT_TIMEOUT_S = 10.0  # answers themselves may take as long as they like
_IN_PROCESS = "http://headrace/v1"


class BatchStopped(Exception):
    """What befell one request would befall the rest too; the message is for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    file: Path
    output: Path | None = None  # None: FILE.output.jsonl beside it
    url: str | None = None  # None: answered in this process
    concurrency: int = 64


def batch(options: BatchOptions, loaded: Loaded) -> int:
    """Returns the exit code: 0 every request has its 200, 1 not every one, 2 a file cannot be used, 130 interrupted."""
    display = Display(sys.stderr)
    output = options.output or options.file.with_suffix(".output.jsonl")
    try:
        requests = read_requests(options.file)
        if output.exists() and output.samefile(options.file):
            raise BatchFileError(f"{output}: holds the requests; name another file with --output")
        with open_answers(output, {request.custom_id for request in requests}) as answers:
            return _answer_rest(options, loaded, requests, answers, output, display)
    except BatchFileError as error:
        display.error(str(error))
        return 2
    except OSError as error:
        display.error(f"cannot write {output}: {error.strerror or error}")
        return 1


def _answer_rest(
    options: BatchOptions,
    loaded: Loaded,
    requests: Sequence[BatchRequest],
    answers: AnswerFile,
    output: Path,
    display: Display,
) -> int:
    rest = [request for request in requests if request.custom_id not in answers.statuses]
    tally = Tally(len(requests), len(answers.statuses), Counter(answers.statuses.values()))
    code = 0
    try:
        if rest:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_run(options, loaded, rest, answers, tally, display))
    except HeadraceError as error:
        display.error(error.message)
        code = 1
    except (BatchStopped, ValueError) as error:  # ValueError: two engines claim one model name
        display.error(str(error))
        code = 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        display.close_progress()
        code = 130
    print(f"{tally.summary()}; {output}", flush=True)
    if tally.num_unfinished:
        display.say(f"The same command asks again for the {tally.num_unfinished} that have no final answer.")
    return code or int(not tally.complete)


async def _run(
    options: BatchOptions,
    loaded: Loaded,
    rest: Sequence[BatchRequest],
    answers: AnswerFile,
    tally: Tally,
    display: Display,
) -> None:
    """Raises BatchStopped, what an engine's start raises, and CancelledError after SIGINT or SIGTERM."""
    running = asyncio.current_task()
    assert running is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    concurrency = options.concurrency
    if options.url is None and loaded.server.max_concurrent_requests is not None:
        concurrency = min(concurrency, loaded.server.max_concurrent_requests)
    async with _client(options, loaded, display) as client:
        tally.started_at = time.perf_counter()
        waiting = iter(rest)
        with Bar(tally) as bar:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(concurrency, len(rest))):
                        group.create_task(_work(client, waiting, answers, tally, bar))
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None


async def _work(
    client: httpx.AsyncClient, waiting: Iterator[BatchRequest], answers: AnswerFile, tally: Tally, bar: Bar
) -> None:
    """One request after the other, until none waits."""
    for request in waiting:
        answer = await ask(client, request)
        answers.write(answer)
        tally.add(answer)
        bar.show(tally)


# --- asking -----------------------------------------------------------------------------------------------------------


async def ask(
    client: httpx.AsyncClient, request: BatchRequest, delays_s: Sequence[float] = _RETRY_DELAYS_S
) -> BatchAnswer:
    """Tried again after each delay while nothing or a 5xx comes back; 4xx is an answer.

    Raises BatchStopped when no connection can be made any more, or the key is refused.
    """
    answer = BatchAnswer(request.custom_id, 0)
    for delay_s in (*delays_s, None):
        retry_after_s = 0.0
        try:
            response = await client.post(request.url.removeprefix("/v1/"), content=request.body)
        except httpx.TransportError as error:
            if delay_s is None and isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                raise BatchStopped(f"no server answers at {client.base_url} any more") from error
            answer = BatchAnswer(request.custom_id, 0, error=f"the connection broke ({type(error).__name__})")
        else:
            answer = _answered(request, response)
            if answer.status == 401:
                raise BatchStopped(f"{client.base_url} refuses the key; give its own with --api-key")
            if answer.status < 500:
                break
            retry_after_s = _retry_after_s(response)
        if delay_s is not None:
            await asyncio.sleep(max(delay_s, retry_after_s))
    return answer


def _answered(request: BatchRequest, response: httpx.Response) -> BatchAnswer:
    try:
        body = response.json()
    except ValueError:
        body = response.text  # a proxy's page, perhaps
    return BatchAnswer(request.custom_id, response.status_code, response.headers.get("x-request-id", ""), body)


def _retry_after_s(response: httpx.Response) -> float:
    try:
        return min(float(response.headers.get("retry-after", "0")), _LONGEST_RETRY_AFTER_S)
    except ValueError:  # a date
        return 0.0


def _client(options: BatchOptions, loaded: Loaded, display: Display) -> AbstractAsyncContextManager[httpx.AsyncClient]:
    if options.url is None:
        return _own_engines(loaded, display)
    return _server(options.url, loaded.server, options.concurrency)


@contextlib.asynccontextmanager
async def _server(url: str, server: ServerSection, concurrency: int) -> AsyncGenerator[httpx.AsyncClient, None]:
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    timeout = httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S)
    async with httpx.AsyncClient(base_url=url, headers=_headers(server), limits=limits, timeout=timeout) as client:
        try:
            await client.get("models")
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise BatchStopped(f"no server answers at {url}; start one with: headrace serve") from error
        yield client


@contextlib.asynccontextmanager
async def _own_engines(loaded: Loaded, display: Display) -> AsyncGenerator[httpx.AsyncClient, None]:
    """Started before the first request, closed after the last."""
    from gateway.cli.logs import configure_logging
    from gateway.cli.wiring import Gateway, ServePlan

    # At the default level each request would have its line in the access log, in the midst of the bar.
    configure_logging(loaded.server.log_level if "log_level" in loaded.origins else "warning")
    app = Gateway(ServePlan(loaded.server, loaded.engines), display.progress).app
    async with app.router.lifespan_context(app):
        display.close_progress()
        transport = httpx.ASGITransport(app)
        headers = _headers(loaded.server)
        async with httpx.AsyncClient(
            base_url=_IN_PROCESS, headers=headers, transport=transport, timeout=None
        ) as client:
            yield client


def _headers(server: ServerSection) -> dict[str, str]:
    key = {} if server.api_key is None else {"Authorization": f"Bearer {server.api_key.get_secret_value()}"}
    return {"Content-Type": "application/json", **key}
