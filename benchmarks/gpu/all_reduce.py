"""Sums over the GPUs of one host: right answers, and microseconds by algorithm and size, inside CUDA graphs.

    python -m benchmarks.gpu.all_reduce [--ranks 2] [--hidden 4096] [--output FILE]

Starts a process a GPU itself. Every algorithm is checked against a float32 sum first; one that is wrong or cannot run
is named and left out. Sizes are rows of `hidden` bfloat16 numbers. The columns with `norm` include the residual
addition and the RMSNorm behind the sum: as two kernels after the fastest sum there, and fused with it. JSON lines go to
--output, a short table comes last: it is what LIMITS in engines/native/distributed/all_reduce.py is made from.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.gpu.timing import graph_us
from engines.native.distributed.all_reduce import MIB, two_shot
from engines.native.distributed.group import RankGroup
from engines.native.distributed.member import NO_MULTICAST, Member
from engines.native.distributed.peer_sums import PeerSums
from engines.native.distributed.symmetric import SymmetricBuffer
from engines.native.kernels import reference, triton_all_reduce, triton_fused

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
EPS = 1e-6


def nccl(x: Tensor) -> Tensor:
    dist.all_reduce(x)
    return x


class Bench:
    """One rank's side. Every method is called by all ranks alike."""

    def __init__(self, rank: int, world_size: int, hidden: int, meeting: Path) -> None:
        self.rank, self.world_size, self.hidden = rank, world_size, hidden
        self.device = torch.device("cuda", rank)
        torch.cuda.set_device(self.device)
        RankGroup(Member(rank, world_size, meeting), self.device)  # joins the process group
        largest = max(ROWS) * hidden * 2
        staging = SymmetricBuffer(largest, self.device)
        self.shared = PeerSums(self.device, rank, world_size, largest)
        self.peers = self.shared.peers
        self.sums: dict[str, Callable[[Tensor], Tensor]] = {
            "nccl": nccl,
            "two-shot": lambda x: two_shot(x, staging),
            "triton": lambda x: triton_all_reduce.all_reduce(x, self.peers),
            "triton-pdl": lambda x: triton_all_reduce.all_reduce(x, self.peers, pdl=True),
        }

    def summands(self, rows: int) -> Tensor:
        """[ranks, rows, hidden] bfloat16, the same on every rank."""
        generator = torch.Generator(self.device).manual_seed(rows)
        shape = (self.world_size, rows, self.hidden)
        return torch.randn(shape, generator=generator, device=self.device).bfloat16()

    def error(self, rows: int, sum_ranks: Callable[[Tensor], Tensor]) -> float:
        """The largest difference from the sum in float32, over the largest sum; three calls, eager and in a graph."""
        summands = self.summands(rows)
        expected = summands.float().sum(0)
        x = torch.empty_like(summands[self.rank])
        worst = 0.0
        for _ in range(3):
            got = sum_ranks(x.copy_(summands[self.rank]))
            worst = max(worst, float((got.float() - expected).abs().max() / expected.abs().max()))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = sum_ranks(x.copy_(summands[self.rank]))
        for _ in range(3):
            graph.replay()
            worst = max(worst, float((got.float() - expected).abs().max() / expected.abs().max()))
        return self.agreed(worst)

    def norm_error(self, rows: int) -> float:
        summands = self.summands(rows)
        residual, weight = torch.randn_like(summands[0]), torch.rand_like(summands[0, 0]) + 0.5
        dist.broadcast(residual, 0)
        dist.broadcast(weight, 0)
        total = summands.float().sum(0) + residual.float()
        expected = reference.rms_norm(total, weight.float(), EPS)
        worst = 0.0
        for pdl in (False, True, False):
            got, new_residual = triton_all_reduce.all_reduce_add_rms_norm(
                summands[self.rank], residual, weight, EPS, self.peers, pdl=pdl
            )
            for value, truth in ((got, expected), (new_residual, total)):
                worst = max(worst, float((value.float() - truth).abs().max() / truth.abs().max()))
        return self.agreed(worst)

    def agreed(self, worst: float) -> float:
        """The worst of all ranks."""
        value = torch.tensor([worst], device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return float(value.item())

    def times_us(self, rows: int, names: list[str]) -> dict[str, float]:
        x = torch.zeros(rows, self.hidden, dtype=torch.bfloat16, device=self.device)
        residual, weight = torch.zeros_like(x), torch.ones_like(x[0])
        times = {name: self.median_us(lambda sum_ranks=self.sums[name]: sum_ranks(x)) for name in names}
        best = self.sums[min(times, key=lambda name: times[name])]
        times["best+norm"] = self.median_us(lambda: triton_fused.add_rms_norm(best(x), residual, weight, EPS, pdl=True))
        for name, pdl in (("fused", False), ("fused-pdl", True)):
            times[name] = self.median_us(
                lambda pdl=pdl: triton_all_reduce.all_reduce_add_rms_norm(x, residual, weight, EPS, self.peers, pdl=pdl)
            )
        return times

    def median_us(self, call: Callable[[], object]) -> float:
        """Of the slowest rank."""
        dist.barrier()
        return self.agreed(graph_us([call], launches=50, replays=9))


def run(rank: int, world_size: int, hidden: int, meeting: Path, output: Path | None) -> None:
    bench = Bench(rank, world_size, hidden, meeting)
    errors: dict[str, float] = {}
    for name, sum_ranks in bench.sums.items():
        try:
            errors[name] = bench.error(37, sum_ranks)
        except RuntimeError as error:  # on every rank alike: the build of torch or the GPU lacks it
            print(f"rank {rank}: {name} cannot run: {error}", flush=True)
            errors[name] = math.inf
    errors["fused"] = max(bench.norm_error(rows) for rows in (1, 2, 37, 200))
    right = [name for name, error in errors.items() if error < 0.02 and name in bench.sums]
    lines = [{"gpu": torch.cuda.get_device_name(), "ranks": world_size, "torch": torch.__version__, "errors": errors}]
    for rows in ROWS:
        times = bench.times_us(rows, right)
        lines.append({"bytes": rows * hidden * 2, **{name: round(us, 2) for name, us in times.items()}})
    if rank == 0:
        if output is not None:
            output.write_text("".join(json.dumps(line) + "\n" for line in lines))
        print_table(lines)
    dist.barrier()
    torch.cuda.synchronize()
    dist.destroy_process_group()


def print_table(lines: list[dict[str, object]]) -> None:
    print("errors (relative, below 0.02 is right):", json.dumps(lines[0]["errors"]))
    names = [name for name in lines[1] if name != "bytes"]
    print(f"{'KiB':>8}" + "".join(f"{name:>11}" for name in names))
    for line in lines[1:]:
        print(f"{int(str(line['bytes'])) / 1024:8.0f}" + "".join(f"{line[name]:11}" for name in names))
    print(
        f"sizes up to {max(ROWS) * 2 * 4096 // MIB} MiB at hidden 4096; microseconds a call, the slowest rank's median"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=torch.cuda.device_count())
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    os.environ.update(NO_MULTICAST)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        arguments = (args.ranks, args.hidden, Path(folder) / "meeting", args.output)
        processes = [context.Process(target=run, args=(rank, *arguments)) for rank in range(args.ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=300)
        for process in processes:
            if process.is_alive():
                print(f"rank process {process.pid} hangs")
                process.kill()
    return int(any(process.exitcode for process in processes))


if __name__ == "__main__":
    sys.exit(main())
