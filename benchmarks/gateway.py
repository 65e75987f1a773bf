"""How many streamed chunks a second the gateway alone carries: the whole chat route on the echo engine.

    python benchmarks/gateway.py [--streams 1 64 256] [--processes 1] [--seconds 4] [--json results.json]

Starts the server pinned to core 0 (each further process to the next core), a load client on the last core, and prints
one line per number of concurrent streams, each the median of `--repeats` measurements, then everything as one line of
JSON. Every stream is one request on a kept-alive connection: one short message, 200 tokens, a server-sent event each.
The client only counts occurrences of `data: `, so that it costs a fraction of what it measures; its own share of a core
is printed, and above 90 % the figures are the client's, not the server's.
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
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import uvloop

ROOT = Path(__file__).resolve().parent.parent
TOKENS = 200
WARM_UP_S = 1.0
MARK = b"data: "
END = b"0\r\n\r\n"


# --- the server -------------------------------------------------------------------------------------------------------


def serve(fd: int) -> None:
    """Serve the echo engine on an inherited listening socket, as `headrace serve` does with each of its processes."""
    import gc

    import uvicorn

    from config.engines import EchoSettings
    from engines.echo import EchoEngine
    from gateway.app import create_app

    app = create_app([EchoEngine(EchoSettings())])
    gc.freeze()
    config = uvicorn.Config(app, loop="uvloop", http="httptools", access_log=False, log_level="warning", ws="none")
    # Not `fd=`: uvicorn takes that for a Unix socket, and small writes would then wait for the client's delayed ACK.
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=fd)])


def start_server(listener: socket.socket, core: int) -> subprocess.Popen[bytes]:
    # -P: this file's folder must not come first on the path, or this file would be the package `gateway`
    command = [sys.executable, "-P", __file__, "--serve-fd", str(listener.fileno())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, pass_fds=(listener.fileno(),), env=environment)
    os.sched_setaffinity(process.pid, {core})
    return process


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


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU time of the server's processes so far: what a chunk costs even when others use the same cores."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # utime, stime
    return ticks / os.sysconf("SC_CLK_TCK")


async def measure(port: int, pids: Sequence[int], num_streams: int, seconds: float) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    request = chat_request(port)
    connections = [await loop.create_connection(lambda: Stream(request), "127.0.0.1", port) for _ in range(num_streams)]
    streams = [stream for _, stream in connections]
    await asyncio.sleep(WARM_UP_S)
    before = _totals(streams)
    started, cpu_started, server_started = time.perf_counter(), time.process_time(), cpu_seconds(pids)
    await asyncio.sleep(seconds)
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu_started
    server_cpu = cpu_seconds(pids) - server_started
    after = _totals(streams)
    assert not any(stream.lost for stream in streams), "the server closed a connection"
    for transport, _ in connections:
        transport.abort()
    chunks, num_bytes, answers, reads = (b - a for a, b in zip(before, after, strict=True))
    return {
        "chunks_per_s": chunks / elapsed,
        "chunks_per_cpu_s": chunks / max(server_cpu, 1e-9),
        "bytes_per_chunk": num_bytes / max(chunks, 1),
        "requests_per_s": answers / elapsed,
        "chunks_per_read": chunks / max(reads, 1),
        "client_core_share": cpu / elapsed,
    }


def _totals(streams: list[Stream]) -> tuple[int, int, int, int]:
    return (
        sum(stream.num_chunks for stream in streams),
        sum(stream.num_bytes for stream in streams),
        sum(stream.num_answers for stream in streams),
        sum(stream.num_reads for stream in streams),
    )


# --- the run ----------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the JSON here")
    parser.add_argument("--serve-fd", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_fd is not None:
        serve(options.serve_fd)
        return
    results = run(options.processes, options.streams, options.seconds, options.repeats)
    line = json.dumps(results)
    print(line)
    if options.json:
        options.json.write_text(line + "\n")


def run(num_processes: int, stream_counts: list[int], seconds: float, repeats: int) -> dict[str, object]:
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2048))
        port: int = listener.getsockname()[1]
        servers = [start_server(listener, cores[index % len(cores)]) for index in range(num_processes)]
        for process in servers:
            stack.callback(process.wait)
            stack.callback(process.terminate)
        os.sched_setaffinity(0, {cores[-1]})
        wait_until_ready(port)
        pids = [process.pid for process in servers]
        print(" streams   chunks/s      min      max  per CPU s  bytes per read  client core")
        rows: list[dict[str, float]] = []
        for count in stream_counts:
            runs = [uvloop.run(measure(port, pids, count, seconds)) for _ in range(repeats)]
            rates = [r["chunks_per_s"] for r in runs]
            row = {"streams": count, **{key: round(statistics.median(r[key] for r in runs), 3) for key in runs[0]}}
            rows.append(row)
            print(
                f"{count:>8} {row['chunks_per_s']:>10,.0f} {min(rates):>8,.0f} {max(rates):>8,.0f} "
                f"{row['chunks_per_cpu_s']:>10,.0f} "
                f"{row['bytes_per_chunk']:>6.0f} {row['chunks_per_read']:>8.2f} {row['client_core_share']:>12.0%}"
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


def wait_until_ready(port: int, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as probe:
                probe.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                if probe.recv(1024).startswith(b"HTTP/1.1 200"):
                    return
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise SystemExit("the server did not become ready")
        time.sleep(0.05)


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


if __name__ == "__main__":
    main()
