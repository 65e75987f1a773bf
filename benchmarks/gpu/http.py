"""The standard workloads through HTTP on one GPU: starts the server, drives it with a load generator, records results.

    python -m benchmarks.gpu.http MODEL_DIR ... --loadgen PATH [--out DIR] [--workers 4] [--workloads 128,256,4,1 ...]
        [--tensor-parallel-size N]
        [--serve-args='--quantize fp8' --suffix fp8] [--peer NAME='COMMAND with {model} and {port}']

MODEL_DIR holds config.json and the tokenizer; weights are random. The load generator is one that takes the flags of
`vllm bench serve` (vLLM's own in Rust does not saturate first). A workload is input tokens, output tokens, requests,
concurrency; sampling is greedy, EOS ignored, over /v1/completions with streaming. Writes DATE-GPU-MODEL-tpN.jsonl: the
first line says hardware, commit and command, then one line a workload. With --peer another server of OpenAI's API takes
our server's place, and the file's name ends in NAME. A short table comes last.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import shlex
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

WORKLOADS = ("128,256,4,1", "512,256,32,8", "1024,128,256,64", "1024,256,768,256", "512,512,512,512")
KEPT = (
    "completed",
    "failed",
    "duration",
    "request_throughput",
    "output_throughput",
    "total_token_throughput",
    "median_ttft_ms",
    "p99_ttft_ms",
    "median_tpot_ms",
    "p99_tpot_ms",
    "median_itl_ms",
    "p99_itl_ms",
)
DEFAULT_PORT = 8123


def gpu_name() -> str:
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def wait_ready(server: subprocess.Popen[bytes], port: int, timeout_s: float = 300.0) -> float:
    """Seconds until it names its models."""
    started = time.monotonic()
    while time.monotonic() - started < timeout_s:
        if server.poll() is not None:
            raise SystemExit(f"the server ended with code {server.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=2):
                return time.monotonic() - started
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the server was not ready in time")


def drive(loadgen: str, port: int, model: Path, workload: str, out: Path) -> dict[str, Any]:
    num_input, num_output, num_requests, concurrency = workload.split(",")
    result = out / f"one-{port}.tmp.json"
    command = [
        *(loadgen, "bench", "serve", "--backend", "openai", "--host", "127.0.0.1", "--port", str(port)),
        *("--model", "m", "--tokenizer", str(model), "--dataset-name", "random", "--disable-tqdm"),
        *("--random-input-len", num_input, "--random-output-len", num_output, "--num-prompts", num_requests),
        *("--max-concurrency", concurrency, "--ignore-eos", "--temperature", "0", "--no-steady-state"),
        *("--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,99"),
        *("--seed", str(random.randrange(1 << 15)), "--save-result"),
        *("--result-dir", str(out), "--result-filename", result.name),
    ]
    log = out / f"{model.name}.{workload}.log"
    with log.open("wb") as file:
        subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False, timeout=300)
    measured = json.loads(result.read_text())
    result.unlink()
    kept = {key: round(value, 3) if isinstance(value := measured.get(key), float) else value for key in KEPT}
    return {"workload": workload, **kept}


def measure(model: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    peer, _, peer_command = args.peer.partition("=")
    command = shlex.split(peer_command.format(model=model, port=args.port)) or [
        *(sys.executable, "-m", "gateway", "serve", str(model), "--load-format", "dummy", "--served-model-name", "m"),
        *("--port", str(args.port), "--max-model-len", "16384", "--gateway-workers", str(args.workers)),
        *("--tensor-parallel-size", str(args.tensor_parallel_size)),
        *shlex.split(args.serve_args),
    ]
    with (args.out / f"{model.name}.{args.suffix}{peer}server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        ready_s = wait_ready(server, args.port)
        print(f"{model.name}: ready after {ready_s:.1f} s", flush=True)
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        name = gpu_name()
        head = {
            "hardware": name,
            "commit": args.commit or commit.stdout.strip(),
            "command": shlex.join(command if peer else ["headrace", *command[3:]]),
            "ready_s": round(ready_s, 1),
        }
        drive(args.loadgen, args.port, model, "64,32,32,32", args.out)  # warm-up
        results = []
        for workload in args.workloads:
            results.append(drive(args.loadgen, args.port, model, workload, args.out))
            print(json.dumps(results[-1]), flush=True)
        short = "h200" if "H200" in name else "h100" if "H100" in name else name.replace(" ", "-").lower()
        file = args.out / f"{datetime.date.today()}-{short}-{model.name}-tp{args.tensor_parallel_size}"
        file = file.with_name("-".join(filter(None, (file.name, args.suffix, peer))) + ".jsonl")
        file.write_text("".join(json.dumps(line) + "\n" for line in (head, *results)))
        return results
    finally:
        server.terminate()
        server.wait(timeout=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--loadgen", required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="another beside a second run, on another GPU")
    parser.add_argument("--workers", type=int, default=4, help="gateway processes")
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--workloads", nargs="*", default=WORKLOADS)
    parser.add_argument("--serve-args", default="", help="further flags of `headrace serve`")
    parser.add_argument("--suffix", default="", help="of the results' name, such as what --serve-args quantize to")
    parser.add_argument("--peer", default="")
    parser.add_argument("--commit", default="", help="where the checkout has no git")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    table = [(model.name, line) for model in args.models for line in measure(model, args)]
    print(f"{'model':14} {'workload':18} {'tok/s':>9} {'TTFT p50':>9} {'p99':>8} {'ITL p50':>8} {'p99':>7}  done")
    for name, line in table:
        print(
            f"{name:14} {line['workload']:18} {line['output_throughput']:9.0f} {line['median_ttft_ms']:9.1f} "
            f"{line['p99_ttft_ms']:8.0f} {line['median_itl_ms']:8.2f} {line['p99_itl_ms']:7.1f}  "
            f"{line['completed']}/{line['completed'] + line['failed']}"
        )


if __name__ == "__main__":
    main()
