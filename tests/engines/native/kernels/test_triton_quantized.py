"""Products of quantized weights, and what surrounds them, agree with the plain PyTorch twins on the same codes."""

from __future__ import annotations

from itertools import product

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from engines.native.kernels import reference, triton_int4_weight, triton_quantize
from engines.native.kernels.triton_gemv import GemvConfig
from engines.native.kernels.triton_int4_gemv import Int4GemvConfig, int4_gemv
from engines.native.kernels.triton_int4_linear import int4_linear
from engines.native.kernels.triton_int4_weight import Int4Weight
from engines.native.kernels.triton_launch import arrival_counters
from engines.native.kernels.triton_linear import LinearConfig
from engines.native.kernels.triton_ops import TritonOps
from engines.native.kernels.triton_quantized import TERMS_ROWS, make_product
from engines.native.kernels.triton_quantized_gemv import quantized_gemv
from engines.native.kernels.triton_quantized_linear import quantized_linear
from engines.native.kernels.triton_terms_linear import terms_linear
from engines.native.quantization.bitsandbytes import BitsAndBytesQuantizer
from engines.native.quantization.fp8 import FP8, Fp8Quantizer, to_e4m3
from engines.native.quantization.fp8 import quantize_tokens as quantize_tokens_twin
from engines.native.quantization.int4 import INT4, Int4Quantizer, pack_words
from engines.native.quantization.int8 import INT8, Int8Quantizer
from engines.native.quantization.weight import QuantizedWeight

ROWS, COLUMNS = 20, 192
FORMATS = pytest.mark.parametrize(
    "kind", ["int8", "fp8", "int8 groups", "fp8 blocks", "int4", "int4 fine", "int4 symmetric"]
)


def quantized(kind: str, rows: int, columns: int, device: torch.device) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(rows + columns)
    weight = torch.randn(rows, columns, generator=generator) / columns**0.5
    scales = torch.rand(rows, columns // 32, generator=generator) / columns**0.5
    byte_codes = torch.randint(-127, 128, (rows, columns), generator=generator)
    made = {
        "int8": lambda: Int8Quantizer().quantize(weight),
        "fp8": lambda: Fp8Quantizer().quantize(weight),
        "int8 groups": lambda: QuantizedWeight(INT8, byte_codes.to(torch.int8), (scales / 64).half()),
        "fp8 blocks": lambda: QuantizedWeight(FP8, to_e4m3(weight * 100), scales[:, : columns // 64] / 50),
        "int4": lambda: Int4Quantizer(64).quantize(weight),
        "int4 fine": lambda: Int4Quantizer(32).quantize(weight),
        "nf4": lambda: BitsAndBytesQuantizer("nf4").quantize(weight),
        "int4 symmetric": lambda: QuantizedWeight(INT4, pack_words(byte_codes % 16), scales.half() / 8),
    }[kind]()
    return made.to(device)


FIXED_POINT = 1e-3  # of x in sixteen bits, by which one token meets 4-bit weights


def assert_close(got: torch.Tensor, expected: torch.Tensor, exact: float = 2e-4) -> None:
    tolerance = exact if got.dtype == torch.float32 else 4e-2
    torch.testing.assert_close(got, expected.to(got.dtype), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kind", ["int8", "fp8", "int8 groups", "fp8 blocks"])
@pytest.mark.parametrize("config", [GemvConfig(8, 64), None], ids=["small blocks", "chosen"])
def test_product_of_one_token_with_all_that_it_takes_along(
    kind: str, config: GemvConfig | None, device: torch.device, dtype: torch.dtype
) -> None:
    weight = quantized(kind, 2 * ROWS, COLUMNS, device)
    plain = weight.dequantize(dtype)
    x, residual, norm_weight = torch.randn(3, 1, COLUMNS, device=device).to(dtype)
    bias = torch.randn(2 * ROWS, device=device).to(dtype)
    norm = norm_weight[0]
    got, total = quantized_gemv(x, weight, config=config)
    assert_close(got, reference.linear(x, plain))
    assert total is x
    for gated, twin in ((False, reference.norm_linear), (True, reference.norm_gated_linear)):
        for each in (None, residual):
            got, total = quantized_gemv(
                x, weight, bias, residual=each, norm_weight=norm, eps=1e-3, gated=gated, config=config
            )
            expected, expected_total = twin(x, each, norm, 1e-3, plain, bias)
            assert_close(got, expected)
            assert torch.equal(total, expected_total)


@pytest.mark.parametrize(
    ("group", "rows", "config"),
    [
        (32, 32, Int4GemvConfig(8, 128, 1)),
        (64, 38, Int4GemvConfig(8, 256, 4, early=False, prefetch_bytes=512)),
        (128, 14, None),
        (128, 7, Int4GemvConfig(4, 512, 1, pdl=False)),
    ],
    ids=["whole steps", "last block and step cut", "chosen", "odd rows"],
)
def test_product_of_one_token_and_4_bits(
    config: Int4GemvConfig | None, group: int, rows: int, device: torch.device, dtype: torch.dtype
) -> None:
    columns = 384
    plain_weight = torch.randn(rows, columns, device=device) / columns**0.5
    weight = Int4Quantizer(group).quantize(plain_weight)
    packed, plain = Int4Weight.of(weight), weight.dequantize(dtype)
    x = torch.randn(1, columns, device=device).to(dtype)
    biases = torch.randn(rows, device=device).to(dtype)
    for bias in (None, biases):
        expected = reference.linear(x, plain, bias)
        assert_close(int4_gemv(x, packed, bias, config=config), expected, FIXED_POINT)
        if rows % 2 == 0:
            gated = int4_gemv(x, packed, bias, gated=True, config=config)
            assert_close(gated, reference.silu_and_mul(expected), FIXED_POINT)


def test_a_token_of_few_large_numbers_keeps_its_small_ones(device: torch.device, dtype: torch.dtype) -> None:
    weight = Int4Quantizer(32).quantize(torch.randn(8, 128, device=device))
    plain = weight.dequantize()
    x = torch.randn(1, 128, device=device).to(dtype)
    x[0, 5] = 1000.0
    x[0, 32:64] = 0.0
    without = x.clone()
    without[0, 5] = 0.0
    got = int4_gemv(x, Int4Weight.of(weight), out_dtype=torch.float32)
    rest = got - reference.linear((x - without).float(), plain.float())
    torch.testing.assert_close(rest, reference.linear(without.float(), plain.float()), atol=0.5, rtol=0)


@FORMATS
@pytest.mark.parametrize("num_tokens", [3, 20])
@pytest.mark.parametrize(
    "config", [LinearConfig(16, 32, 128), LinearConfig(16, 16, 64, split_k=2), None], ids=["whole", "split", "chosen"]
)
def test_product_of_few_tokens(
    kind: str, num_tokens: int, config: LinearConfig | None, device: torch.device, dtype: torch.dtype
) -> None:
    weight = quantized(kind, 2 * ROWS, COLUMNS, device)
    x = torch.randn(num_tokens, COLUMNS, device=device).to(dtype)
    bias = torch.randn(2 * ROWS, device=device).to(dtype)
    expected = reference.linear(x, weight.dequantize(dtype), bias)
    if weight.format is INT4:
        assert_close(int4_linear(x, Int4Weight.of(weight), bias, config=config), expected)
    else:
        assert_close(quantized_linear(x, weight, bias, config=config), expected)
        if config is None or config.split_k == 1:
            assert_close(quantized_linear(x, weight, bias, gated=True, config=config), reference.silu_and_mul(expected))
    assert not arrival_counters(device).any()


@FORMATS
def test_a_weight_is_dequantized_to_the_bit(kind: str, device: torch.device) -> None:
    weight = quantized(kind, ROWS, COLUMNS, device)
    if weight.format is INT4:
        assert torch.equal(triton_int4_weight.dequantize(Int4Weight.of(weight), torch.float32), weight.dequantize())
    else:
        assert torch.equal(triton_quantize.dequantize(weight, torch.float32), weight.dequantize())


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
def test_tokens_get_a_scale_each_and_codes_within_one_step(
    normed: bool, device: torch.device, dtype: torch.dtype
) -> None:
    x, residual = torch.randn(2, 5, COLUMNS, device=device).to(dtype)
    x[2] = 0
    residual[2] = 0
    norm = torch.rand(COLUMNS, device=device).to(dtype) if normed else None
    codes, scales, total = triton_quantize.quantize_tokens(x, residual if normed else None, norm, 1e-3)
    expected = x
    if norm is not None:
        expected, expected_total = reference.add_rms_norm(x, residual, norm, 1e-3)
        assert torch.equal(total, expected_total)
    twin, twin_scales = quantize_tokens_twin(expected)
    torch.testing.assert_close(scales, twin_scales, atol=0, rtol=1e-6 if dtype == torch.float32 else 2e-2)
    close = (codes.float() - twin.float()).abs() <= twin.float().abs() / 8
    assert close.float().mean() > (0.99 if x.is_cuda else 0.9)  # the interpreter drops a carry into the exponent


@pytest.mark.parametrize(
    ("kind", "num_tokens"), [*product(["int8", "fp8", "int4"], [1, 2, 70, 300]), ("nf4", 1), ("nf4", 2)]
)
def test_every_number_of_tokens_has_a_product(
    kind: str, num_tokens: int, device: torch.device, dtype: torch.dtype
) -> None:
    weight = quantized(kind, 64 if kind != "nf4" else 8, 128, device)  # whose codes are interpreted slowly
    served, ops, plain = make_product(weight), TritonOps(), weight.dequantize(dtype)
    x, residual = torch.randn(2, num_tokens, 128, device=device).to(dtype)
    norm = torch.rand(128, device=device).to(dtype)
    if kind == "fp8" and x.is_cuda and num_tokens > TERMS_ROWS:
        codes, scales = quantize_tokens_twin(x)
        assert_close(served.linear(x), reference.linear((codes.float() * scales).to(dtype), plain))
        return
    exact = FIXED_POINT if kind == "int4" and num_tokens == 1 else 2e-4
    if kind == "nf4":
        exact = 1e-2  # of scales in bfloat16
    assert_close(served.linear(x), reference.linear(x, plain), exact)
    assert served.linear(x, None, torch.float32).dtype == torch.float32
    got, total = served.norm_gated_linear(ops, x, residual, norm, 1e-3, None)
    expected, expected_total = reference.norm_gated_linear(x, residual, norm, 1e-3, plain)
    assert_close(got, expected, exact)
    assert torch.equal(total, expected_total)
    got, _ = served.norm_linear(ops, x, residual, norm, 1e-3, None)
    assert_close(got, reference.norm_linear(x, residual, norm, 1e-3, plain)[0], exact)


def in_two_terms(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    terms, _ = triton_quantize.quantize_in_two_terms(x, dtype)
    first, second = terms.codes.float().unbind(1)
    return (first + second / triton_quantize.SECOND_TERM[dtype]) * terms.scales


@pytest.mark.parametrize(
    ("dtype", "relative", "of_largest"), [(torch.float8_e4m3fn, 2**-8, 2**-18), (torch.int8, 0.0, 2**-15.9)]
)
def test_two_terms_are_as_fine_as_bfloat16(
    dtype: torch.dtype, relative: float, of_largest: float, device: torch.device
) -> None:
    x = torch.randn(7, COLUMNS, generator=torch.Generator().manual_seed(0)).to(device)
    x[2] = 0
    x[3] *= torch.logspace(-5, 5, COLUMNS, device=device)
    x[4, 5] = 1e4
    largest = x.abs().amax(1, keepdim=True)
    error = (in_two_terms(x, dtype) - x).abs()
    assert (error <= relative * x.abs() + of_largest * largest).all()
    assert error.square().sum() < 1.5 * (x.bfloat16().float() - x).square().sum()


@pytest.mark.parametrize("kind", ["fp8", "int8"])
@pytest.mark.parametrize("tokens", [2, 17, 40])
@pytest.mark.parametrize(
    "config",
    [LinearConfig(16, 32, 64, split_k=2), LinearConfig(32, 16, 128), None],
    ids=["split", "uneven", "chosen"],
)
def test_products_of_two_terms(
    kind: str, tokens: int, config: LinearConfig | None, device: torch.device, dtype: torch.dtype
) -> None:
    weight = quantized(kind, 2 * ROWS, COLUMNS, device)
    plain = weight.dequantize(torch.float32)
    x, residual, norm_weight = torch.randn(3, tokens, COLUMNS, device=device).to(dtype)
    bias = torch.randn(2 * ROWS, device=device).to(dtype)
    terms, total = triton_quantize.quantize_in_two_terms(x, weight.codes.dtype)
    assert total is x
    known = in_two_terms(x, weight.codes.dtype)
    for out_dtype in (dtype, torch.float32):
        got = terms_linear(terms, weight, bias, out_dtype=out_dtype, config=config)
        assert_close(got, reference.linear(known, plain, bias.float()), exact=1e-3)
    terms, total = triton_quantize.quantize_in_two_terms(x, weight.codes.dtype, residual, norm_weight[0], 1e-3)
    expected, expected_total = reference.norm_gated_linear(
        x, residual, norm_weight[0], 1e-3, weight.dequantize(dtype), bias
    )
    assert torch.equal(total, expected_total)
    if config is None or config.split_k == 1:
        got = terms_linear(terms, weight, bias, out_dtype=dtype, gated=True, config=config)
        assert_close(got, expected, exact=2e-2)
