"""Linear layers at decode batch sizes: cuBLAS and the Triton candidates, plain and with PDL."""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.kernels import Built, Case
from benchmarks.gpu.shapes import MODELS
from benchmarks.gpu.timing import num_copies
from engines.native.kernels import reference, triton_linear
from engines.native.kernels.triton_linear import LinearConfig

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

GEMV = [
    LinearConfig(1, 8, 1024),
    LinearConfig(1, 4, 1024),
    LinearConfig(1, 4, 2048),
    LinearConfig(1, 8, 512),
    LinearConfig(1, 8, 1024, split_k=2),
    LinearConfig(1, 16, 512, num_warps=8),
]
SKINNY_16 = [
    LinearConfig(16, 32, 128, num_stages=4),
    LinearConfig(16, 32, 256, num_stages=4),
    LinearConfig(16, 16, 256, num_stages=5),
    LinearConfig(16, 64, 128, num_stages=5),
    LinearConfig(16, 32, 256, split_k=2, num_stages=3),
    LinearConfig(16, 32, 128, split_k=4, num_stages=4),
]
SKINNY = {
    1: [*GEMV, *SKINNY_16[:2]],
    2: SKINNY_16,
    16: SKINNY_16,
    32: [
        LinearConfig(32, 32, 128, num_stages=5),
        LinearConfig(32, 64, 128, num_stages=4),
        LinearConfig(32, 32, 128, split_k=4, num_stages=4),
    ],
    64: [
        LinearConfig(64, 64, 128, num_stages=4),
        LinearConfig(64, 32, 128, num_stages=5),
        LinearConfig(64, 64, 128, split_k=4, num_stages=3),
        LinearConfig(64, 128, 64, num_stages=5, num_warps=8),
    ],
    128: [LinearConfig(128, 64, 64, num_stages=5), LinearConfig(128, 128, 64, num_stages=4, num_warps=8)],
}


@functools.lru_cache(maxsize=1)
def _pool() -> Tensor:
    """Random numbers that every weight is cut from: at most the largest weight, or three times the L2 cache."""
    return torch.empty(700_000_000, dtype=torch.bfloat16, device="cuda").normal_(std=0.02)


def _weights(n: int, k: int, warm: bool) -> list[Tensor]:
    copies = 1 if warm else min(num_copies(2 * n * k), 700_000_000 // (n * k))
    pool = torch.empty(n * k, dtype=torch.bfloat16, device="cuda") if warm else _pool()
    return [pool[i * n * k : (i + 1) * n * k].view(n, k) for i in range(copies)]


def _build(m: int, n: int, k: int, config: LinearConfig | None, pdl: bool, fused: str, warm: bool) -> Built:
    weights = _weights(n, k, warm)
    x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
    norm_weight = torch.rand(k, device="cuda", dtype=torch.bfloat16)
    if config is None:
        return Built([functools.partial(functional.linear, x, weight) for weight in weights])
    options: dict[str, object] = {"config": config, "pdl": pdl}
    if "norm" in fused:
        options |= {"norm_weight": norm_weight, "eps": 1e-6}
    if "gated" in fused:
        options["gated"] = True

    def expected() -> Tensor:
        normed = reference.rms_norm(x.float(), norm_weight.float(), 1e-6) if "norm" in fused else x.float()
        product = normed @ weights[0].float().T
        return reference.silu_and_mul(product) if "gated" in fused else product

    calls = [functools.partial(triton_linear.linear, x, weight, **options) for weight in weights]
    return Built(calls, expected if n < 100_000 else None)


def _variant(config: LinearConfig, pdl: bool) -> str:
    split = f"k{config.split_k}" if config.split_k > 1 else ""
    name = f"{config.block_m}x{config.block_n}x{config.block_k}{split}w{config.num_warps}s{config.num_stages}"
    return name + ("+pdl" if pdl else "")


def _compile_key(m: int, k: int, config: LinearConfig, pdl: bool, fused: str) -> str:
    even = k % (config.block_k * config.split_k) == 0
    return f"linear {fused} {_variant(config, pdl)} {m == 1} {m % 16 == 0} {even}"


def cases() -> Iterator[Case]:
    shapes = {}
    for model in MODELS:
        for name, (n, k) in model.linears.items():
            shapes.setdefault((n, k), f"{model.name} {name}")
    for (n, k), name in shapes.items():
        for m in BATCHES:
            num_bytes, flops = 2.0 * (n * k + m * (n + k)), 2.0 * m * n * k

            def case(config: LinearConfig | None, pdl: bool = False, fused: str = "", variant: str = "",
                     m=m, n=n, k=k, name=name, num_bytes=num_bytes, flops=flops) -> Case:  # fmt: skip
                return Case(
                    "linear",
                    f"linear{fused}",
                    f"{name} M{m}",
                    variant or (_variant(config, pdl) if config else ""),
                    num_bytes,
                    flops,
                    functools.partial(_build, m, n, k, config, pdl, fused),
                    compile_key=_compile_key(m, k, config, pdl, fused) if config else "",
                )

            yield case(None, variant="cublas")
            for config in SKINNY.get(m, []):
                split_too_far = k // config.split_k < config.block_k or n > 30_000
                if config.split_k > 1 and split_too_far:
                    continue
                yield case(config)
                if m in (1, 16, 64):
                    yield case(config, True)
            if m in (1, 16):
                for config in [LinearConfig(1, 8, 512), LinearConfig(1, 4, 1024)] if m == 1 else SKINNY_16[:2]:
                    if "qkv" in name:
                        yield case(config, True, "+norm")
                    if "gate_up" in name:
                        yield case(config, True, "+norm+gated")
