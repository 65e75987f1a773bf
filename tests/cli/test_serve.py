from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.cli.process import environment, headrace, serving

ECHO = ("--engine", "echo", "--port", "0")


def chat(url: str, **fields: Any) -> httpx.Response:
    body = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]} | fields
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)


def eventually(holds: Callable[[], bool], limit_s: float = 60.0) -> bool:
    deadline = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def connections_refused(url: str) -> bool:
    try:
        httpx.get(f"{url}/health")
    except httpx.ConnectError:
        return True
    return False


class SlowStream(threading.Thread):
    """A streamed request of about two seconds; `text` and `error` say how it ended."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self.begun = threading.Event()
        self.text = ""
        self.error: Exception | None = None

    def run(self) -> None:
        body = {"model": "echo", "messages": [{"role": "user", "content": "x y"}], "max_tokens": 40, "stream": True}
        try:
            with httpx.stream("POST", f"{self._url}/v1/chat/completions", json=body, timeout=60) as response:
                for piece in response.iter_text():
                    self.text += piece
                    self.begun.set()
        except httpx.HTTPError as error:
            self.error = error
        self.begun.set()


@pytest.mark.parametrize("workers", [1, 2])
def test_serves_what_ready_says_and_ends_with_exit_code_0(workers: int):
    with serving(*ECHO, "--gateway-workers", str(workers)) as server:
        assert chat(server.url).json()["choices"][0]["message"]["content"] == "one two three"
        assert httpx.get(f"{server.url}/health").status_code == 200
        shown = "".join(server.lines)
        for words in ("echo", "8,192 tokens", "/v1/chat/completions"):
            assert words in shown
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        assert connections_refused(server.url)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stored_response_is_found_by_whichever_process_is_asked(workers: int):
    with serving(*ECHO, "--gateway-workers", str(workers)) as server:
        made = httpx.post(f"{server.url}/v1/responses", json={"model": "echo", "input": "Hi"}).json()
        for _ in range(8):
            assert httpx.get(f"{server.url}/v1/responses/{made['id']}").json() == made


@pytest.mark.parametrize("workers", [1, 2])
def test_open_stream_ends_well_after_sigterm(workers: int):
    with serving(*ECHO, "--gateway-workers", str(workers), "--token-delay-s", "0.05") as server:
        stream = SlowStream(server.url)
        stream.start()
        assert stream.begun.wait(60)
        server.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: connections_refused(server.url))
        stream.join(60)
        assert stream.error is None
        assert stream.text.endswith("data: [DONE]\n\n")
        assert server.wait() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_second_signal_does_not_wait_for_streams(workers: int):
    with serving(*ECHO, "--gateway-workers", str(workers), "--token-delay-s", "1.0") as server:
        stream = SlowStream(server.url)
        stream.start()
        assert stream.begun.wait(60)
        server.process.send_signal(signal.SIGINT)
        assert eventually(lambda: "Stopping" in "".join(server.lines))
        server.process.send_signal(signal.SIGINT)
        started = time.monotonic()
        server.wait()
        assert time.monotonic() - started < 20  # the stream alone would take 40
        stream.join(60)


def test_stream_that_overstays_the_shutdown_timeout_is_cut():
    with serving(*ECHO, "--token-delay-s", "1.0", "--shutdown-timeout-s", "1") as server:
        stream = SlowStream(server.url)
        stream.start()
        assert stream.begun.wait(60)
        server.process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        server.wait()
        assert time.monotonic() - started < 20
        stream.join(60)
        assert not stream.text.endswith("data: [DONE]\n\n")


def test_dead_worker_is_replaced_while_others_serve():
    with serving(*ECHO, "--gateway-workers", "2") as server:
        parent = psutil.Process(server.process.pid)
        workers = [child for child in parent.children() if "spawn_main" in " ".join(child.cmdline())]
        assert len(workers) == 2
        workers[0].kill()
        assert chat(server.url).status_code == 200
        assert eventually(lambda: "starting another" in "".join(server.lines))

        def replaced() -> bool:
            now = [child for child in parent.children() if "spawn_main" in " ".join(child.cmdline())]
            return len(now) == 2 and workers[0] not in now

        assert eventually(replaced)
        assert chat(server.url).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0


def test_workers_do_not_outlive_a_killed_parent():
    with serving(*ECHO, "--gateway-workers", "2") as server:
        children = psutil.Process(server.process.pid).children(recursive=True)
        server.process.kill()
        server.process.wait()
        _, alive = psutil.wait_procs(children, timeout=60)
        assert alive == []


def test_workers_share_their_metrics():
    with serving(*ECHO, "--gateway-workers", "2") as server:
        for _ in range(20):
            assert chat(server.url).status_code == 200  # a new connection each, so either process may get it
        counted = 'headrace_requests_total{route="/v1/chat/completions",status="200"} 20.0'
        assert counted in httpx.get(f"{server.url}/metrics").text


def test_unix_socket_is_served_and_removed(tmp_path: Path):
    path = tmp_path / "h.sock"
    abandoned = socket.socket(socket.AF_UNIX)
    abandoned.bind(str(path))  # as a killed server leaves it
    abandoned.close()
    with serving("--engine", "echo", "--uds", str(path)) as server:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://headrace") as client:
            assert client.get("/health").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
    assert not path.exists()


def test_access_log_is_one_json_line_a_request_and_can_be_silenced():
    with serving(*ECHO) as server:
        chat(server.url)
        assert eventually(lambda: server.lines[-1].startswith("{"))
        assert json.loads(server.lines[-1])["status"] == 200
    with serving(*ECHO, "--log-level", "warning") as server:
        chat(server.url)
        server.process.send_signal(signal.SIGTERM)
        server.wait()
        assert not [line for line in server.lines if line.startswith("{")]


def test_several_engines_from_one_file(tmp_path: Path):
    path = tmp_path / "h.toml"
    path.write_text(
        'port = 0\n[[engines]]\nkind = "echo"\nserved_model_name = "a"\n'
        '[[engines]]\nkind = "echo"\nserved_model_name = ["b", "c"]\n'
    )
    with serving("--config", str(path)) as server:
        assert [card["id"] for card in httpx.get(f"{server.url}/v1/models").json()["data"]] == ["a", "b", "c"]
        assert chat(server.url, model="c").status_code == 200


# --- what goes wrong before "Ready" -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["1", "2"])
def test_taken_port_is_one_line_and_exit_code_1(workers: str):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = headrace("serve", "--engine", "echo", "--port", port, "--gateway-workers", workers)
    assert ended.returncode == 1
    assert ended.stderr == (
        f"headrace: error: 127.0.0.1:{port} is in use; stop what listens there or choose another port with --port.\n"
    )


@pytest.mark.parametrize("workers", ["1", "2"])
def test_upstream_that_cannot_be_asked_is_one_line_and_exit_code_1(workers: str):
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # not listening: connections are refused
        upstream = f"http://127.0.0.1:{reserved.getsockname()[1]}/v1"
        ended = headrace(
            "serve", "--engine", "remote", "--upstream", upstream, "--port", "0", "--gateway-workers", workers
        )
    assert ended.returncode == 1
    assert ended.stderr == (
        f"headrace: error: {upstream} does not tell its models: The upstream cannot be reached. "
        "Name them with served_model_name to start without asking.\n"
    )


@pytest.mark.parametrize("workers", ["1", "2"])
def test_name_claimed_twice_is_one_line_and_exit_code_1(tmp_path: Path, workers: str):
    path = tmp_path / "h.toml"
    path.write_text('port = 0\n[[engines]]\nkind = "echo"\n[[engines]]\nkind = "echo"\n')
    ended = headrace("serve", "--config", str(path), "--gateway-workers", workers)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "'echo' is claimed twice" in ended.stderr


def test_host_that_is_not_ours_is_one_line_and_exit_code_1():
    ended = headrace("serve", "--engine", "echo", "--host", "192.0.2.1", "--port", "0")
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "192.0.2.1:0" in ended.stderr


def test_missing_packages_of_the_native_engine_are_named(tmp_path: Path):
    """As after `pip install headrace` without the extra."""
    (tmp_path / "zmq.py").write_text("raise ModuleNotFoundError(\"No module named 'zmq'\", name='zmq')")
    search = os.pathsep.join((str(tmp_path), environment()["PYTHONPATH"]))
    command = [sys.executable, "-m", "gateway", "serve", "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment(PYTHONPATH=search), timeout=120)
    assert ended.returncode == 1
    assert ended.stderr == (
        "headrace: error: The native engine needs the package zmq; install Headrace with its extra [native].\n"
    )
