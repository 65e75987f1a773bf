"""`headrace serve` with the native engine: the demo model, one core behind one or several gateway processes."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.cli.process import Server, headrace, serving

SMALL = ("--port", "0", "--max-model-len", "256", "--max-num-seqs", "4")
QUESTION = {
    "model": "smollm2-135m",
    "messages": [{"role": "user", "content": "Count: one, two,"}],
    "max_tokens": 8,
    "temperature": 0,
}


def ask(server: Server) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", json=QUESTION, timeout=120)


def cores(server: Server) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children(recursive=True)
    return [child for child in children if "engines.native.worker" in " ".join(child.cmdline())]


@pytest.mark.usefixtures("smollm2_gguf")
@pytest.mark.parametrize("workers", [1, 2])
def test_one_core_stands_behind_all_processes_and_comes_back_when_it_dies(workers: int):
    with serving(*SMALL, "--gateway-workers", str(workers)) as server:
        shown = "".join(server.lines)
        for words in ("smollm2-135m", "KV capacity", "dtype", "attention", "256 tokens"):
            assert words in shown
        first = ask(server).json()["choices"][0]["message"]["content"]
        assert first
        (core,) = cores(server)
        core.kill()
        deadline = time.monotonic() + 120
        while (answer := ask(server)).status_code != 200:
            assert answer.status_code in (500, 503), answer.text
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert answer.json()["choices"][0]["message"]["content"] == first
        (second,) = cores(server)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        assert not second.is_running()


def test_model_that_is_not_there_is_one_line_and_exit_code_1(tmp_path: Path):
    ended = headrace("serve", str(tmp_path / "none.gguf"), "--port", "0")
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert "none.gguf" in ended.stderr
