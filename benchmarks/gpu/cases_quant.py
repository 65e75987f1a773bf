"""Products of quantized weights: the engine's choice, other tiles, the libraries' kernels, and bf16 for comparison.

Qwen3-8B's shapes. A case's kernel is `FORMAT` for the plain product and `FORMAT+norm` for what one token takes along.
Every variant is checked against the dequantized weight in float32 (of `fp8` beyond 64 tokens, e4m3 activations' own
error included: 0.03 to 0.04). Bytes of the floor are codes, scales and activations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.kernels import Built, Case
from benchmarks.gpu.quant_tiles import BATCHES, BITS, BYTE_GEMV, INT4_GEMV, INT4_TILES, MOST_TOKENS, TERMS_TILES, TILES
from benchmarks.gpu.shapes import QWEN3_8B
from benchmarks.gpu.timing import num_copies
from engines.native.kernels import reference, triton_int4_weight, triton_quantize
from engines.native.kernels.quantized import Product
from engines.native.kernels.triton_gemv import GemvConfig
from engines.native.kernels.triton_int4_gemv import Int4GemvConfig, int4_gemv
from engines.native.kernels.triton_int4_linear import int4_linear
from engines.native.kernels.triton_int4_weight import Int4Weight
from engines.native.kernels.triton_linear import LinearConfig
from engines.native.kernels.triton_ops import TritonOps
from engines.native.kernels.triton_quantized import make_product
from engines.native.kernels.triton_quantized_gemv import quantized_gemv
from engines.native.kernels.triton_quantized_linear import quantized_linear
from engines.native.kernels.triton_terms_linear import terms_linear
from engines.native.quantization.bitsandbytes import BitsAndBytesQuantizer
from engines.native.quantization.fp8 import Fp8Quantizer
from engines.native.quantization.int4 import Int4Quantizer, unpack_words
from engines.native.quantization.int8 import Int8Quantizer
from engines.native.quantization.weight import QuantizedWeight

Run = Callable[[Tensor, QuantizedWeight], Tensor]
Gemv = GemvConfig | Int4GemvConfig


def _quantize(kind: str, weight: Tensor) -> QuantizedWeight:
    return {
        "fp8": Fp8Quantizer(),
        "int8": Int8Quantizer(),
        "int4": Int4Quantizer(64),
        "int4 g32": Int4Quantizer(32),
        "nf4": BitsAndBytesQuantizer("nf4", 64),
        "fp4": BitsAndBytesQuantizer("fp4", 64),
    }[kind].quantize(weight)


@functools.lru_cache(maxsize=8)
def _weights(kind: str, n: int, k: int, copies: int) -> tuple[Tensor, tuple[QuantizedWeight, ...]]:
    """A plain weight and as many quantized ones, of codes of their own, as fill the L2 cache several times."""
    plain = torch.empty(n, k, dtype=torch.bfloat16, device="cuda").normal_(std=0.02)
    first = _quantize(kind, plain)
    others = [replace(first, codes=first.codes.clone()) for _ in range(copies - 1)]
    return plain, (first, *others)


def _build(kind: str, m: int, n: int, k: int, run: Run, checked: bool, warm: bool) -> Built:
    copies = 1 if warm else num_copies(int(n * k * BITS[kind] / 8))
    _, weights = _weights(kind, n, k, copies)
    x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
    calls = [functools.partial(run, x, weight) for weight in weights]
    for call in calls:
        call()
    torch.cuda.synchronize()  # an early launch would read what its predecessor makes of a weight
    return Built(calls, (lambda: reference.linear(x.float(), weights[0].dequantize())) if checked else None)


def _build_fused(kind: str, n: int, k: int, gated: bool, config: Gemv | None, apart: bool, warm: bool) -> Built:
    copies = 1 if warm else num_copies(int(n * k * BITS[kind] / 8))
    _, weights = _weights(kind, n, k, copies)
    x, residual = torch.randn(2, 1, k, device="cuda", dtype=torch.bfloat16)
    norm = torch.rand(k, device="cuda", dtype=torch.bfloat16)
    ops = TritonOps()
    twin = reference.norm_gated_linear if gated else reference.norm_linear

    def fused(weight: QuantizedWeight | Int4Weight) -> Tensor:
        if isinstance(weight, QuantizedWeight) and not apart:
            return quantized_gemv(
                x, weight, residual=residual, norm_weight=norm, eps=1e-6, gated=gated, pdl=True, config=config
            )[0]
        normed = ops.add_rms_norm(x, residual, norm, 1e-6)[0]
        if isinstance(weight, Int4Weight):  # `apart` is the gate's kernel
            out = int4_gemv(normed, weight, gated=gated and not apart, pdl=True, config=config)
        else:
            out = quantized_gemv(normed, weight, pdl=True)[0]
        return ops.silu_and_mul(out) if gated and apart else out

    expected = lambda: twin(x.float(), residual.float(), norm.float(), 1e-6, weights[0].dequantize())[0]  # noqa: E731
    prepared = [Int4Weight.of(weight) if BITS[kind] < 8 else weight for weight in weights]
    return Built([functools.partial(fused, weight) for weight in prepared], expected)


def _build_bf16(m: int, n: int, k: int, warm: bool) -> Built:
    copies = 1 if warm else num_copies(2 * n * k)
    weights = [torch.empty(n, k, dtype=torch.bfloat16, device="cuda").normal_(std=0.02) for _ in range(copies)]
    x, ops = torch.randn(m, k, device="cuda", dtype=torch.bfloat16), TritonOps()
    return Built([functools.partial(ops.linear, x, weight) for weight in weights])


def _build_tinygemm(kind: str, m: int, n: int, k: int, warm: bool) -> Built:
    """torch._weight_int4pack_mm of the same codes, in its own layout."""
    copies = 1 if warm else num_copies(int(n * k * BITS[kind] / 8))
    _, (weight, *_) = _weights(kind, n, k, copies)
    codes = unpack_words(weight.codes)
    packed = torch._convert_weight_to_int4pack(((codes[:, ::2] << 4) | codes[:, 1::2]).to(torch.uint8), 8)
    assert weight.offsets is not None
    affine = torch.stack([weight.scales, weight.offsets], dim=2).transpose(0, 1).contiguous().bfloat16()
    x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
    copied = [packed.clone() for _ in range(copies)]
    calls = [functools.partial(torch._weight_int4pack_mm, x, each, weight.group_size, affine) for each in copied]
    return Built(calls, lambda: reference.linear(x.float(), weight.dequantize()))


def _products(kind: str, m: int) -> Iterator[tuple[str, Run]]:
    """Each makes of a weight what it reads when it is first called with it, outside what is timed."""
    made: dict[int, Product] = {}
    packed: dict[int, Int4Weight] = {}

    def int4(weight: QuantizedWeight) -> Int4Weight:
        key = weight.codes.data_ptr()
        if key not in packed:
            packed[key] = Int4Weight.of(weight)
        return packed[key]

    def chosen(x: Tensor, weight: QuantizedWeight) -> Tensor:
        key = weight.codes.data_ptr()
        if key not in made:
            made[key] = make_product(weight)
        return made[key].linear(x)

    yield "ops", chosen
    if BITS[kind] < 8:
        for config in INT4_GEMV if m == 1 else []:
            yield _label(config), lambda x, w, config=config: int4_gemv(x, int4(w), pdl=True, config=config)
        for config in INT4_TILES.get(m, []):
            yield _label(config), lambda x, w, config=config: int4_linear(x, int4(w), pdl=True, config=config)
        if m >= 64:
            yield (
                "dequantize+cublas",
                lambda x, w: functional.linear(x, triton_int4_weight.dequantize(int4(w), x.dtype)),
            )
        return
    if m == 1:
        for config in BYTE_GEMV:
            for each in (config, replace(config, pdl=False)):
                yield (
                    _label(each),
                    lambda x, weight, each=each: quantized_gemv(x, weight, pdl=True, config=each)[0],
                )
    for config in TILES.get(m, []):
        yield _label(config), lambda x, weight, config=config: quantized_linear(x, weight, pdl=True, config=config)
    if m >= 64:
        yield "dequantize+cublas", lambda x, w: functional.linear(x, triton_quantize.dequantize(w, x.dtype))
    if kind == "int8" and m <= 64:
        yield "torch int8pack", lambda x, w: torch._weight_int8pack_mm(x, w.codes, w.scales.view(-1).to(x.dtype))
    if m in TERMS_TILES:
        yield from _in_two_terms(m)


def _in_two_terms(m: int) -> Iterator[tuple[str, Run]]:
    """Tiles over activations that are in two terms already."""
    for config in TERMS_TILES[m]:
        made: list[tuple[Tensor, triton_quantize.TwoTerms]] = []

        def run(x: Tensor, weight: QuantizedWeight, config=config, made=made) -> Tensor:
            if not made or made[-1][0] is not x:
                made.append((x, triton_quantize.quantize_in_two_terms(x, weight.codes.dtype)[0]))
            return terms_linear(made[-1][1], weight, out_dtype=x.dtype, pdl=True, config=config)

        yield f"two terms {_label(config)}", run


def _label(config: Gemv | LinearConfig) -> str:
    """gemv or the tile's tokens, rows, columns, splits of them, warps, stages, and how it is launched."""
    if isinstance(config, LinearConfig):
        split = f"k{config.split_k}" if config.split_k > 1 else ""
        name = f"{config.block_m}x{config.block_n}x{config.block_k}{split}w{config.num_warps}s{config.num_stages}"
        return name + "+pdl" * config.pdl
    name = f"gemv {config.block_n}x{config.block_k}w{config.num_warps}"
    if isinstance(config, Int4GemvConfig):
        name += "" if config.early else " late"
    return name + (f"+pdl{config.prefetch_bytes // 1024}" if config.pdl else "")


def _fused_cases(kind: str, name: str, n: int, k: int, num_bytes: float) -> Iterator[Case]:
    gated = name == "gate_up"
    for label, config, apart in [
        ("ops", None, False),
        ("apart", None, True),
        *((_label(c), c, False) for c in (INT4_GEMV if BITS[kind] < 8 else BYTE_GEMV)),
    ]:
        yield Case("quant", f"{kind}+norm", f"{name} M1", label, num_bytes, 2.0 * n * k,
                   functools.partial(_build_fused, kind, n, k, gated, config, apart),
                   compile_key=f"{kind} fused {label} {name}")  # fmt: skip


def cases() -> Iterator[Case]:
    for name, (n, k) in QWEN3_8B.linears.items():
        for m in BATCHES:
            if name == "head" and m == 2048:
                continue
            moved = 2.0 * m * (n + k)
            yield Case("quant", "bf16", f"{name} M{m}", "ops", 2.0 * n * k + moved, 2.0 * m * n * k,
                       functools.partial(_build_bf16, m, n, k), compile_key=f"bf16 {name} {m}")  # fmt: skip
            for kind, bits in BITS.items():
                if (name == "head" and bits < 8) or m > MOST_TOKENS.get(kind, m):
                    continue
                flops = 2.0 * m * n * k / (2 if kind == "fp8" else 1)
                num_bytes = n * k * bits / 8 + moved
                for variant, run in _products(kind, m):
                    key = f"{kind} {variant}" + (f" {name} {m}" if variant == "ops" or "gemv" in variant else "")
                    yield Case("quant", kind, f"{name} M{m}", variant, num_bytes, flops,
                               functools.partial(_build, kind, m, n, k, run, n < 100_000), compile_key=key)  # fmt: skip
                if kind.startswith("int4") and m <= 256:
                    yield Case("quant", kind, f"{name} M{m}", "tinygemm", num_bytes, flops,
                               functools.partial(_build_tinygemm, kind, m, n, k))  # fmt: skip
                if m == 1 and name in ("qkv", "gate_up"):
                    yield from _fused_cases(kind, name, n, k, num_bytes)
