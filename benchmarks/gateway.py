"""How many streamed chunks a second the gateway alone carries: the whole chat route on the echo engine.

    python benchmarks/gateway.py [--streams 1 64 256] [--processes 1] [--seconds 4] [--json results.json]

Runs `headrace serve --engine echo` on the first cores, one for each gateway process, a load client on the last core.
Prints a line for each number of concurrent streams, the median of `--repeats` measurements, and at the end everything
as one line of JSON. A stream is one request on a kept-alive connection: one short message, 200 tokens, a server-sent
event and a write for each. The client only counts occurrences of `data: ` and never sleeps, so that the server does not
pay for waking it. `per CPU s` is what the server carries in a second of its own CPU time: the figure to compare when
others use the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import uvloop

ROOT = Path(__file__).resolve().parent.parent
TOKENS = 200
WARM_UP_S = 1.0
MARK = b"data: "
END = b"0\r\n\r\n"


# --- the server -------------------------------------------------------------------------------------------------------


@contextmanager
def serving(num_processes: int, cores: set[int]) -> Iterator[tuple[int, list[int]]]:
    """The port and the process ids of a server that is ready."""
    port = free_port()
    command = [sys.executable, "-m", "gateway", "serve", "--engine", "echo", "--port", str(port)]
    command += ["--gateway-workers", str(num_processes)]
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # inherited by what is started now
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.sched_setaffinity(0, everywhere)
    try:
        wait_until_ready(server, port)
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        yield port, [server.pid, *map(int, children)]
    finally:
        server.terminate()
        server.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait_until_ready(server: subprocess.Popen[bytes], port: int, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as probe:
                probe.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                if probe.recv(1024).startswith(b"HTTP/1.1 200"):
                    return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("the server did not become ready")


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU time of these processes so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # utime, stime
    return ticks / os.sysconf("SC_CLK_TCK")


# --- the client -------------------------------------------------------------------------------------------------------


class Stream(asyncio.Protocol):
    """One connection that asks again as soon as it was answered, and counts chunks."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._tail = b""
        self.num_chunks = 0
        self.num_bytes = 0
        self.num_answers = 0
        self.num_reads = 0
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.num_reads += 1
        self.num_bytes += len(data)
        seen = self._tail + data
        self.num_chunks += seen.count(MARK)
        # what may be the start of a mark, and must not hold a whole one
        self._tail = seen[-(len(MARK) - 1) :]
        if seen.endswith(END):
            self.num_answers += 1
            self._tail = b""
            self._transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.lost = True


def chat_request(port: int) -> bytes:
    body = json.dumps(
        {
            "model": "echo",
            "messages": [{"role": "user", "content": "All work and no play makes Jack a dull boy."}],
            "max_tokens": TOKENS,
            "stream": True,
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def measure(port: int, pids: Sequence[int], num_streams: int, seconds: float) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    request = chat_request(port)
    connections = [await loop.create_connection(lambda: Stream(request), "127.0.0.1", port) for _ in range(num_streams)]
    streams = [stream for _, stream in connections]
    awake = loop.create_task(stay_awake())
    await asyncio.sleep(WARM_UP_S)
    before, started, cpu_started = _totals(streams), time.perf_counter(), cpu_seconds(pids)
    await asyncio.sleep(seconds)
    after, elapsed, cpu = _totals(streams), time.perf_counter() - started, cpu_seconds(pids) - cpu_started
    awake.cancel()
    assert not any(stream.lost for stream in streams), "the server closed a connection"
    for transport, _ in connections:
        transport.abort()
    chunks, num_bytes, answers, reads = (b - a for a, b in zip(before, after, strict=True))
    assert answers > 0 or chunks > 0, "nothing was answered"
    return {
        "chunks_per_s": chunks / elapsed,
        "chunks_per_cpu_s": chunks / max(cpu, 0.01),  # the clock ticks every 10 ms
        "bytes_per_chunk": num_bytes / chunks,
        "requests_per_s": answers / elapsed,
        "chunks_per_read": chunks / reads,
    }


async def stay_awake() -> None:
    while True:  # noqa: ASYNC110 - not to wait is the point
        await asyncio.sleep(0)


def _totals(streams: list[Stream]) -> tuple[int, int, int, int]:
    return (
        sum(stream.num_chunks for stream in streams),
        sum(stream.num_bytes for stream in streams),
        sum(stream.num_answers for stream in streams),
        sum(stream.num_reads for stream in streams),
    )


# --- the run ----------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description="Streamed chunks a second of the gateway alone, on the echo engine.")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--processes", type=int, default=1, help="gateway processes on one socket")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    line = json.dumps(run(options.processes, options.streams, options.seconds, options.repeats))
    print(line)
    if options.json:
        options.json.write_text(line + "\n")


def run(num_processes: int, stream_counts: list[int], seconds: float, repeats: int) -> dict[str, object]:
    cores = sorted(os.sched_getaffinity(0))
    rows: list[dict[str, float]] = []
    with serving(num_processes, set(cores[:num_processes])) as (port, pids):
        os.sched_setaffinity(0, {cores[-1]})
        print(" streams   chunks/s      min      max  per CPU s  bytes per read")
        for count in stream_counts:
            runs = [uvloop.run(measure(port, pids, count, seconds)) for _ in range(repeats)]
            rates = [result["chunks_per_s"] for result in runs]
            medians = {key: round(statistics.median(result[key] for result in runs), 3) for key in runs[0]}
            rows.append({"streams": count, **medians})
            print(
                f"{count:>8} {medians['chunks_per_s']:>10,.0f} {min(rates):>8,.0f} {max(rates):>8,.0f} "
                f"{medians['chunks_per_cpu_s']:>10,.0f} {medians['bytes_per_chunk']:>6.0f} "
                f"{medians['chunks_per_read']:>8.2f}"
            )
    return {
        "benchmark": "gateway",
        "engine": "echo",
        "tokens_per_stream": TOKENS,
        "processes": num_processes,
        "seconds": seconds,
        "repeats": repeats,
        "cores": len(cores),
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "rows": rows,
    }


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


if __name__ == "__main__":
    main()
