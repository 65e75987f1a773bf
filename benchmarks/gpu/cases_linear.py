"""Linear layers at decode batch sizes: cuBLAS, the engine's choice among the Triton kernels, and other candidates.

`ops` is what the engine runs. Sections `linear+norm`, `linear+norm+gated` (one token: the residual addition included)
and `linear+gated` time products that take other work along; their variant `apart` is the same work in several kernels.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.kernels import Built, Case
from benchmarks.gpu.shapes import MODELS
from benchmarks.gpu.timing import num_copies
from engines.native.kernels import reference, triton_fused, triton_linear
from engines.native.kernels.ops import Ops
from engines.native.kernels.triton_gemv import GemvConfig, gemv
from engines.native.kernels.triton_linear import LinearConfig, choose_config
from engines.native.kernels.triton_ops import TritonOps

Run = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""x [M, K], residual [M, K], norm_weight [K], weight [N, K] to the result."""

BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 128, 256)

GEMV = [GemvConfig(4, 1024), GemvConfig(4, 2048), GemvConfig(8, 1024), GemvConfig(2, 2048), GemvConfig(4, 2048, 8)]
GEMV_NORM = [GemvConfig(4, 1024), GemvConfig(8, 512), GemvConfig(4, 2048), GemvConfig(4, 2048, 8)]
GEMV_GATED = [
    GemvConfig(8, 512),
    GemvConfig(8, 1024),
    GemvConfig(4, 1024),
    GemvConfig(4, 512),
    GemvConfig(4, 2048, 8),
    GemvConfig(8, 1024, 8),
]
SKINNY = {
    8: [
        LinearConfig(16, 64, 128, num_stages=5),
        LinearConfig(16, 16, 256, num_stages=5),
        LinearConfig(16, 32, 256, split_k=2, num_stages=3),
        LinearConfig(16, 32, 128, split_k=4),
        LinearConfig(64, 32, 128, num_stages=5),
        LinearConfig(64, 64, 128),
        LinearConfig(64, 32, 128, split_k=2, num_stages=4),
    ],
    32: [
        LinearConfig(32, 64, 128),
        LinearConfig(32, 32, 128, split_k=4),
        LinearConfig(64, 32, 128, num_stages=5),
        LinearConfig(64, 64, 128),
        LinearConfig(64, 128, 64, num_warps=8, num_stages=5),
        LinearConfig(64, 32, 128, split_k=2, num_stages=4),
    ],
}


@functools.lru_cache(maxsize=1)
def _pool() -> Tensor:
    """Random numbers that every weight is cut from: at most the largest weight, or three times the L2 cache."""
    return torch.empty(700_000_000, dtype=torch.bfloat16, device="cuda").normal_(std=0.02)


def _weights(n: int, k: int, warm: bool) -> list[Tensor]:
    copies = 1 if warm else min(num_copies(2 * n * k), 700_000_000 // (n * k))
    pool = torch.empty(n * k, dtype=torch.bfloat16, device="cuda") if warm else _pool()
    return [pool[i * n * k : (i + 1) * n * k].view(n, k) for i in range(copies)]


def _build(m: int, n: int, k: int, run: Run, twin: Run, warm: bool) -> Built:
    weights = _weights(n, k, warm)
    x, residual = torch.randn(2, m, k, device="cuda", dtype=torch.bfloat16)
    norm_weight = torch.rand(k, device="cuda", dtype=torch.bfloat16)
    wide = (x.float(), residual.float(), norm_weight.float())
    calls = [functools.partial(run, x, residual, norm_weight, weight) for weight in weights]
    return Built(calls, (lambda: twin(*wide, weights[0].float())) if n < 100_000 else None)


def _product(x: Tensor, _residual: Tensor, _norm_weight: Tensor, weight: Tensor) -> Tensor:
    return reference.linear(x, weight)


def _gated(x: Tensor, _residual: Tensor, _norm_weight: Tensor, weight: Tensor) -> Tensor:
    return reference.silu_and_mul(reference.linear(x, weight))


def _normed(x: Tensor, residual: Tensor, norm_weight: Tensor, weight: Tensor) -> Tensor:
    return reference.norm_linear(x, residual, norm_weight, 1e-6, weight)[0]


def _normed_and_gated(x: Tensor, residual: Tensor, norm_weight: Tensor, weight: Tensor) -> Tensor:
    return reference.norm_gated_linear(x, residual, norm_weight, 1e-6, weight)[0]


def _label(config: GemvConfig | LinearConfig) -> str:
    m, split = (1, 1) if isinstance(config, GemvConfig) else (config.block_m, config.split_k)
    name = f"{m}x{config.block_n}x{config.block_k}" + (f"k{split}" if split > 1 else "") + f"w{config.num_warps}"
    if isinstance(config, LinearConfig):
        name += f"s{config.num_stages}"
    prefetch = "" if config.prefetch_bytes == 32 * 1024 else f"/{config.prefetch_bytes // 1024}K"
    return name + ("+pdl" + prefetch) * config.pdl


def _timed_plain(m: int, n: int, k: int) -> Iterator[tuple[str, Run]]:
    ops = TritonOps()
    yield "cublas", lambda x, _r, _w, weight: functional.linear(x, weight)
    if m <= triton_linear.SKINNY_ROWS:
        yield "ops", lambda x, _r, _w, weight: ops.linear(x, weight)
    for config in _plain_candidates(m, n, k):
        if isinstance(config, GemvConfig):
            yield _label(config), lambda x, _r, _w, weight, config=config: gemv(x, weight, pdl=True, config=config)[0]
        else:
            yield (
                _label(config),
                lambda x, _r, _w, weight, config=config: triton_linear.linear(x, weight, pdl=True, config=config),
            )


def _plain_candidates(m: int, n: int, k: int) -> Iterator[GemvConfig | LinearConfig]:
    if m == 1:
        for config in GEMV:
            if config.block_k <= k:
                yield from (replace(config, pdl=False), config)
        yield from (replace(GEMV[1], prefetch_bytes=size) for size in (0, 8192))
    for config in SKINNY.get(m, []):
        split_too_far = config.split_k > 1 and n > 30_000
        if not split_too_far:
            yield from (replace(config, pdl=False), config)
            if m <= 16 or (config.block_m, config.block_n) == (64, 32):
                yield replace(config, prefetch_bytes=8192)


def _timed_fused(m: int, n: int, k: int, gated: bool) -> Iterator[tuple[str, Run]]:
    """With norm and residual where m is 1; the weight has n rows."""
    ops = TritonOps()
    mine, twin = (ops.norm_gated_linear, Ops.norm_gated_linear) if gated else (ops.norm_linear, Ops.norm_linear)
    if m > 1:
        chosen = choose_config(m, n, k, gated=True)
        if chosen is not None:
            early = replace(chosen, pdl=True)
            for config in (replace(chosen, pdl=False), early, replace(early, prefetch_bytes=8192)):
                yield (
                    _label(config),
                    lambda x, _r, _w, weight, config=config: triton_linear.linear(
                        x, weight, gated=True, pdl=True, config=config
                    ),
                )
        yield "apart", lambda x, _r, _w, weight: triton_fused.silu_and_mul(ops.linear(x, weight), pdl=True)
        return
    yield "ops", lambda x, residual, w, weight: mine(x, residual, w, 1e-6, weight)[0]
    yield "apart", lambda x, residual, w, weight: twin(_Apart(), x, residual, w, 1e-6, weight)[0]
    for config in GEMV_GATED if gated else GEMV_NORM:
        for each in (replace(config, pdl=False), config, replace(config, prefetch_bytes=8192)):
            yield (
                _label(each),
                lambda x, residual, w, weight, each=each: gemv(
                    x, weight, residual=residual, norm_weight=w, eps=1e-6, gated=gated, pdl=True, config=each
                )[0],
            )


class _Apart(TritonOps):
    norm_linear = Ops.norm_linear


def cases() -> Iterator[Case]:
    shapes = {}
    for model in MODELS:
        for name, (n, k) in model.linears.items():
            shapes.setdefault((n, k), f"{model.name} {name}")
    for (n, k), name in shapes.items():
        for m in BATCHES:
            num_bytes, flops = 2.0 * (n * k + m * (n + k)), 2.0 * m * n * k

            def case(kernel: str, variant: str, run: Run, twin: Run, m=m, n=n, k=k, name=name, num_bytes=num_bytes,
                     flops=flops) -> Case:  # fmt: skip
                key = f"{kernel} {variant}" + (f" {name} {m}" if variant in ("ops", "apart") else "")
                key = "" if variant == "cublas" else key
                return Case("linear", kernel, f"{name} M{m}", variant, num_bytes, flops,
                            functools.partial(_build, m, n, k, run, twin), compile_key=key)  # fmt: skip

            for variant, run in _timed_plain(m, n, k):
                yield case("linear", variant, run, _product)
            if m == 1 and "qkv" in name:
                for variant, run in _timed_fused(m, n, k, gated=False):
                    yield case("linear+norm", variant, run, _normed)
            if m == 1 and "gate_up" in name:
                for variant, run in _timed_fused(m, n, k, gated=True):
                    yield case("linear+norm+gated", variant, run, _normed_and_gated)
            if m in (2, 8, 32, 64) and "gate_up" in name:
                for variant, run in _timed_fused(m, n, k, gated=True):
                    yield case("linear+gated", variant, run, _gated)
