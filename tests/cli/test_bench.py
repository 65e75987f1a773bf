"""`headrace bench` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.process import headrace
from tests.engines.native.bench.tiny import tiny_model


def test_figures_come_first_and_json_last(tmp_path: Path):
    model = tiny_model(tmp_path / "tiny")
    picture = tmp_path / "load.png"
    ended = headrace(
        *("bench", "all", str(model), "--load-format", "dummy", "--device", "cpu", "--max-num-seqs", "4"),
        *("--prompt-tokens", "16", "--output-tokens", "4", "--batch-size", "2", "--concurrency", "1,4"),
        *("--requests", "4", "--lengths", "32", "--repeats", "1", "--plot", str(picture)),
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    text = "\n".join(lines[:-1])
    for words in ("measured limits: memory", "latency: a batch of 2", "throughput: 16 tokens in, 4 out", "prefill: "):
        assert words in text
    report = json.loads(lines[-1])
    assert report["about"]["model"] == str(model)
    assert [level["concurrency"] for level in report["throughput"]] == [1, 4]
    assert report["prefill"][0]["prompt_tokens"] == 32
    assert report["latency"][0]["batch_size"] == 2
    assert report["limits"]["copy_bytes_per_s"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["latency", "--lengths", "3"], "--lengths is an option of prefill, not of latency"),
        (["prefill", "--plot", "a.png"], "--plot is an option of throughput, not of prefill"),
        (["throughput", "--concurrency", "1,x"], "--concurrency takes whole numbers of at least 1 (got 'x')"),
        (["latency", "--batch-size", "0"], "--batch-size takes whole numbers of at least 1 (got '0')"),
        (["latency", "--output-tokens", "1"], "--output-tokens must be at least 2"),
        (["throughput", "--plot", "a.jpg"], "--plot writes PNG: name a file that ends in .png (got 'a.jpg')"),
        (["throughput", "--plot", "/none/a.png"], "--plot cannot write into /none"),
        (["speed"], "invalid choice: 'speed'"),
        (["latency", "--port", "1"], "unknown argument --port"),
        (["latency", "--device", "tpu"], "device: Input should be 'auto', 'cpu' or 'cuda' (got 'tpu' from --device)."),
    ],
    ids=" ".join,
)
def test_mistake_is_one_line_and_exit_code_2(arguments: list[str], expected: str):
    ended = headrace("bench", *arguments)
    assert ended.returncode == 2
    assert expected in ended.stderr.splitlines()[-1]


def test_settings_of_other_engines_are_refused(tmp_path: Path):
    path = tmp_path / "h.toml"
    path.write_text('engine = "echo"')
    ended = headrace("bench", "latency", "--config", str(path))
    assert ended.returncode == 2
    assert ended.stderr == (
        "headrace: error: engines: bench measures one native engine, but the settings describe echo.\n"
    )


def test_what_the_engine_cannot_hold_is_one_line_and_exit_code_1(tmp_path: Path):
    model = tiny_model(tmp_path / "tiny")
    ended = headrace("bench", "latency", str(model), "--load-format", "dummy", "--prompt-tokens", "999")
    assert ended.returncode == 1
    assert "prompt_tokens (999) + output_tokens (128) exceed the context of 256 tokens" in ended.stderr
    assert "Traceback" not in ended.stderr
