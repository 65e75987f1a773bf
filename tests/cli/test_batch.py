"""`headrace batch` as a user calls it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from gateway.cli.batch import BatchStopped, ask
from gateway.cli.batch_file import BatchRequest
from tests.cli.process import environment, headrace, serving
from tests.gateway import live

ECHO = ("--engine", "echo")


def line(custom_id: str, text: str = "one two", **fields: Any) -> dict[str, Any]:
    body = {"model": "echo", "messages": [{"role": "user", "content": text}]} | fields
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def written(folder: Path, lines: Sequence[dict[str, Any]]) -> Path:
    path = folder / "r.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


def answers(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "r.output.jsonl").read_text().splitlines()]


def test_each_request_has_its_answer_in_the_batch_format(tmp_path: Path):
    completion = {
        "custom_id": "c",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"model": "echo", "prompt": "é", "max_tokens": 1},
    }
    body = {"model": "echo", "input": "third"}
    response = {"custom_id": "d", "method": "POST", "url": "/v1/responses", "body": body}
    body = {"model": "echo", "input": "fourth"}
    embedding = {"custom_id": "e", "method": "POST", "url": "/v1/embeddings", "body": body}
    path = written(tmp_path, [line("a", "first"), line("b", "second"), completion, response, embedding])
    ended = headrace("batch", str(path), *ECHO, HEADRACE_API_KEY="hush")
    assert ended.returncode == 0, ended.stderr
    found = {answer["custom_id"]: answer for answer in answers(tmp_path)}
    assert all(answer.keys() == {"id", "custom_id", "response", "error"} for answer in found.values())
    assert len({answer["id"] for answer in found.values()}) == 5
    bodies = {name: answer["response"]["body"] for name, answer in found.items()}
    assert bodies["a"]["choices"][0]["message"]["content"] == "first"
    assert bodies["b"]["choices"][0]["message"]["content"] == "second"
    assert len(bodies["e"]["data"][0]["embedding"]) == 64
    assert bodies["c"]["choices"][0]["text"] == "é"
    assert bodies["d"]["output"][0]["content"][0]["text"] == "third"
    assert found["a"]["response"]["status_code"] == 200
    assert found["a"]["response"]["request_id"]
    assert found["a"]["error"] is None
    tokens = bodies["d"]["usage"]["output_tokens"]
    tokens += sum(bodies[name]["usage"]["completion_tokens"] for name in "abc")
    assert ended.stdout.startswith("5 of 5 requests answered; ")
    assert f", {tokens} out in " in ended.stdout
    assert ended.stdout.endswith("r.output.jsonl\n")


def test_refused_request_is_an_answer_and_not_asked_again(tmp_path: Path):
    path = written(tmp_path, [line("a"), line("b", temperature=-1)])
    ended = headrace("batch", str(path), *ECHO)
    assert ended.returncode == 1
    assert ended.stdout.startswith("1 of 2 requests answered, 1 refused; ")
    found = answers(tmp_path)
    refused = next(answer for answer in found if answer["custom_id"] == "b")
    assert refused["response"]["status_code"] == 400
    assert refused["response"]["body"]["error"]["param"] == "temperature"
    again = headrace("batch", str(path), *ECHO)
    assert again.returncode == 1
    assert "2 of them in earlier runs" in again.stdout
    assert answers(tmp_path) == found


def test_bad_file_names_every_line_and_nothing_is_asked(tmp_path: Path):
    path = written(tmp_path, [line("a"), line("a"), line("b") | {"method": "GET"}])
    ended = headrace("batch", str(path), *ECHO)
    assert ended.returncode == 2
    assert f"{path}: line 2: custom_id: 'a' is that of line 1 already" in ended.stderr
    assert f"{path}: line 3: method: Input should be 'POST'" in ended.stderr
    assert not (tmp_path / "r.output.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--url", "http://127.0.0.1:9/v1", "--engine", "echo"), "--engine is about an engine of this command's own"),
        (("--url", "127.0.0.1:9"), "must start with http:// or https://"),
        (("--concurrency", "0"), "takes whole numbers of at least 1 (got '0')"),
        (("--output", "r.jsonl"), "holds the requests; name another file with --output"),
    ],
    ids=["engine beside URL", "URL", "concurrency", "output is input"],
)
def test_mistake_on_the_command_line_is_exit_code_2(
    tmp_path: Path, arguments: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, [line("a")])
    ended = headrace("batch", "r.jsonl", *arguments)
    assert ended.returncode == 2
    assert expected in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)],
    ids=lambda value: str(value),
)
def test_stopped_run_goes_on_where_it_ended(tmp_path: Path, number: signal.Signals, code: int):
    path = written(tmp_path, [line(f"r{i}", f"text {i}") for i in range(400)])
    output = tmp_path / "r.output.jsonl"
    command = [sys.executable, "-m", "gateway", "batch", str(path), *ECHO]
    slowly = subprocess.Popen(
        [*command, "--concurrency", "2", "--token-delay-s", "0.02"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    live.wait_until(lambda: output.exists() and output.read_bytes().count(b"\n") >= 5, timeout_s=60)
    slowly.send_signal(number)
    summary, _ = slowly.communicate(timeout=60)
    assert slowly.returncode == code
    if code == 130:
        assert " of 400 requests answered, " in summary
        assert " open; " in summary
    before = answers(tmp_path)
    assert 5 <= len(before) < 400
    again = headrace("batch", str(path), *ECHO)
    assert again.returncode == 0, again.stderr
    assert f"400 of 400 requests answered, {len(before)} of them in earlier runs" in again.stdout
    after = answers(tmp_path)
    assert after[: len(before)] == before
    assert sorted(answer["custom_id"] for answer in after) == sorted(f"r{i}" for i in range(400))


def test_no_more_requests_are_open_than_concurrency_says(tmp_path: Path):
    num_open, most = 0, 0

    async def answer(_: Request) -> JSONResponse:
        nonlocal num_open, most
        num_open += 1
        most = max(most, num_open)
        await asyncio.sleep(0.02)
        num_open -= 1
        return JSONResponse({})

    path = written(tmp_path, [line(f"r{i}") for i in range(20)])
    app = Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])
    with live.serving(app, "any") as server:
        ended = headrace("batch", str(path), "--url", f"{server.url}/v1", "--concurrency", "3")
    assert ended.returncode == 0, ended.stderr
    assert most == 3


def test_server_is_asked_with_the_key_and_a_wrong_one_ends_the_run(tmp_path: Path):
    path = written(tmp_path, [line(f"r{i}") for i in range(5)])
    with serving(*ECHO, "--port", "0", "--api-key", "right") as server:
        wrong = headrace("batch", str(path), "--url", f"{server.url}/v1", "--api-key", "wrong")
        assert wrong.returncode == 1
        assert "refuses the key; give its own with --api-key" in wrong.stderr
        assert answers(tmp_path) == []
        right = headrace("batch", str(path), "--url", f"{server.url}/v1/", HEADRACE_API_KEY="right")
    assert right.returncode == 0, right.stderr
    assert len(answers(tmp_path)) == 5


def test_no_server_says_how_to_start_one(tmp_path: Path):
    ended = headrace("batch", str(written(tmp_path, [line("a")])), "--url", "http://127.0.0.1:9/v1")
    assert ended.returncode == 1
    assert "no server answers at http://127.0.0.1:9/v1; start one with: headrace serve" in ended.stderr
    assert ended.stdout.startswith("0 of 1 requests answered, 1 open; ")


class Scripted:
    """An upstream that answers with these statuses in turn, the last for ever; 0 drops the connection."""

    def __init__(self, *statuses: int) -> None:
        self._statuses = statuses
        self.num_asked = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        status = self._statuses[min(self.num_asked, len(self._statuses) - 1)]
        self.num_asked += 1
        if status == 0:
            raise httpx.ReadError("gone", request=request)
        return httpx.Response(status, text="<html>")


@pytest.mark.parametrize(
    ("statuses", "final", "num_asked"),
    [((200,), 200, 1), ((503, 0, 200), 200, 3), ((400,), 400, 1), ((429,), 429, 1), ((500,), 500, 4), ((0,), 0, 4)],
    ids=str,
)
async def test_only_failures_are_tried_again(statuses: tuple[int, ...], final: int, num_asked: int):
    upstream = Scripted(*statuses)
    async with httpx.AsyncClient(base_url="http://up.test/v1", transport=httpx.MockTransport(upstream)) as client:
        answer = await ask(client, BatchRequest("a", "/v1/completions", b"{}"), delays_s=(0, 0, 0))
    assert (answer.custom_id, answer.status, upstream.num_asked) == ("a", final, num_asked)
    assert answer.error == ("" if final else "the connection broke (ReadError)")


async def test_run_ends_when_no_connection_can_be_made():
    async with httpx.AsyncClient(base_url="http://127.0.0.1:9/v1") as client:
        with pytest.raises(BatchStopped, match="no server answers"):
            await ask(client, BatchRequest("a", "/v1/completions", b"{}"), delays_s=(0,))


@pytest.mark.usefixtures("smollm2_gguf")
def test_native_engine_answers_a_batch_without_a_server(tmp_path: Path):
    fields = {"model": "smollm2-135m", "temperature": 0, "max_tokens": 8}
    path = written(tmp_path, [line(f"r{i}", "Count: one, two,", **fields) for i in range(6)])
    started = time.monotonic()
    ended = headrace("batch", str(path), "--max-model-len", "256", "--max-num-seqs", "4")
    assert ended.returncode == 0, f"{ended.stderr}\nafter {time.monotonic() - started:.0f} s"
    bodies = [answer["response"]["body"] for answer in answers(tmp_path)]
    assert [body["usage"]["completion_tokens"] for body in bodies] == [8] * 6
    assert len({body["choices"][0]["message"]["content"] for body in bodies}) == 1
