"""nf4's and fp4's products agree with the plain PyTorch twins, and the PTX in them with what is done elsewhere."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from engines.native.kernels import reference, triton_int4_table, triton_int4_weight
from engines.native.kernels.triton_int4_gemv import Int4GemvConfig, int4_gemv
from engines.native.kernels.triton_int4_linear import int4_linear
from engines.native.kernels.triton_int4_table import UNITS
from engines.native.kernels.triton_int4_weight import Int4Weight
from engines.native.kernels.triton_linear import LinearConfig
from engines.native.kernels.triton_quantized import make_product
from engines.native.quantization.bitsandbytes import FORMATS, TABLES, pack, unpack
from engines.native.quantization.weight import QuantizedWeight
from tests.engines.native.kernels import ptx

NAMES = pytest.mark.parametrize("name", ["nf4", "fp4"])


def quantized(name: str, rows: int, columns: int, group_size: int, device: torch.device) -> QuantizedWeight:
    """Of every code, and of scales below zero too, such as the kernels keep without rounding them."""
    generator = torch.Generator().manual_seed(rows + columns)
    codes = pack(torch.randint(0, 16, (rows, columns), generator=generator))
    scales = torch.randn(rows, columns // group_size, generator=generator) / columns**0.5
    return as_kept(QuantizedWeight(FORMATS[name], codes, scales)).to(device)


def as_kept(weight: QuantizedWeight) -> QuantizedWeight:
    unit = UNITS[weight.format.name]
    return replace(weight, scales=(weight.scales / unit).bfloat16().float() * unit)


def assert_close(got: torch.Tensor, expected: torch.Tensor, exact: float) -> None:
    tolerance = exact if got.dtype == torch.float32 else 4e-2
    torch.testing.assert_close(got, expected.to(got.dtype), atol=tolerance, rtol=tolerance)


def word_of(codes: list[int]) -> int:
    return sum(code << (4 * i) for i, code in enumerate(codes))


@NAMES
def test_ptx_makes_bfloat16s_of_codes(name: str) -> None:
    table = (torch.tensor(TABLES[name]) * UNITS[name]).bfloat16()
    codes = random.Random(name).choices(range(16), k=48) + list(range(16))
    for eight in (codes[i : i + 8] for i in range(0, len(codes), 8)):
        registers = ptx.run(triton_int4_table._PAIRS_TEXT.value[name], {4: word_of(eight)})
        values = torch.cat([ptx.bfloat16s(registers[f"${i}"]) for i in range(4)])
        # fp4 has its table to the bit; what is left of a byte that was not asked for is as good as nothing.
        torch.testing.assert_close(values, table[eight], atol=1e-37, rtol=0)


@NAMES
def test_ptx_sums_products_of_codes_and_bytes(name: str) -> None:
    rng = random.Random(name)
    for largest in (127 * 256, 200):
        codes = [rng.choices(range(16), k=8) for _ in range(4)]
        x = [[rng.randint(-largest, largest) for _ in range(8)] for _ in range(4)]
        lower, upper = ([[0] * 4, [0] * 4] for _ in range(2))
        for j, half, i in ((j, half, i) for j in range(4) for half in range(2) for i in range(4)):
            number = x[j][4 * half + i]
            lower[half][j] |= (number & 255) << (8 * i)
            upper[half][j] |= ((number + 128) >> 8 & 255) << (8 * i)
        zeros = [
            ptx.run(
                triton_int4_table._ZEROS_TEXT.value,
                {1: lower[0][j], 2: lower[1][j], 3: upper[0][j], 4: upper[1][j]},
            )["$0"]
            for j in range(4)
        ]
        assert [ptx.signed(word) for word in zeros] == [-64 * sum(numbers) for numbers in x]
        factors = [*lower[0], *upper[0], *lower[1], *upper[1]]
        operands = dict(enumerate([*map(word_of, codes), *factors, sum(zeros)], 1))
        bits = ptx.run(triton_int4_table._SUMS_TEXT.value[name], operands)["$0"]
        got = struct.unpack("<f", struct.pack("<I", bits))[0] * triton_int4_table.X_STEPS.value[name] * 127 * 256
        expected = sum(
            TABLES[name][code] * UNITS[name] * number
            for word, numbers in zip(codes, x, strict=True)
            for code, number in zip(word, numbers, strict=True)
        )
        assert got == pytest.approx(expected, abs=15 * abs(UNITS[name]))  # of the least part, which is left out


@NAMES
def test_codes_of_zero_sum_to_nothing(name: str, device: torch.device, dtype: torch.dtype) -> None:
    zeros = [code for code, value in enumerate(TABLES[name]) if value == 0]
    assert len(zeros) == (1 if name == "nf4" else 2)
    codes = torch.tensor(zeros).repeat(4, 128 // len(zeros))
    weight = QuantizedWeight(FORMATS[name], pack(codes), torch.ones(4, 2)).to(device)
    product = make_product(weight)
    for num_tokens in (1, 2):
        out = product.linear(torch.randn(num_tokens, weight.num_columns, device=device).to(dtype))
        assert out.abs().max() < 1e-30


@NAMES
@pytest.mark.parametrize("group_size", [32, 64])
def test_a_weight_is_dequantized_to_within_its_scales_rounding(
    name: str, group_size: int, device: torch.device
) -> None:
    weight = quantized(name, 20, 192, group_size, device)
    got = triton_int4_weight.dequantize(Int4Weight.of(weight), torch.float32)
    table = 1e-6 if device.type == "cpu" else 2**-8  # there it is in bfloat16
    torch.testing.assert_close(got, weight.dequantize(), atol=1e-9, rtol=table)
    plain = replace(weight, scales=weight.scales * 1.003)
    got = triton_int4_weight.dequantize(Int4Weight.of(plain), torch.float32)
    torch.testing.assert_close(got, plain.dequantize(), atol=1e-9, rtol=2**-8 + 2 * table)


@NAMES
def test_a_matrix_is_laid_out_in_slices_as_in_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = quantized(name, 10, 64, 32, torch.device("cpu"))
    words, scales = triton_int4_table.lay_out(weight)
    monkeypatch.setattr(triton_int4_table, "_WIDEST_SLICE", 3 * 64)
    assert torch.equal(triton_int4_table.lay_out(weight)[0], words)
    # Word 1 of the second chunk: columns 2, 3, 10, 11, 18, 19, 26, 27 of it.
    eight = unpack(weight.codes)[7, [34, 35, 42, 43, 50, 51, 58, 59]].tolist()
    assert int(words[7, 5]) & ptx.MASK == word_of(eight)
    assert torch.equal(scales.view(torch.bfloat16).float().squeeze(2) * UNITS[name], weight.scales)


@pytest.mark.parametrize(
    ("name", "group_size", "rows", "config"),
    [
        ("nf4", 64, 8, Int4GemvConfig(4, 128, 1)),
        ("fp4", 32, 6, Int4GemvConfig(2, 256, 4, early=False)),
        ("nf4", 32, 5, None),
        ("fp4", 128, 4, Int4GemvConfig(4, 512, 1, pdl=False)),
    ],
    ids=["whole steps", "last block and step cut", "chosen, odd rows", "wide groups"],
)
def test_product_of_one_token(
    name: str, group_size: int, rows: int, config: Int4GemvConfig | None, device: torch.device, dtype: torch.dtype
) -> None:
    weight = quantized(name, rows, 384, group_size, device)
    packed, plain = Int4Weight.of(weight), weight.dequantize(dtype)
    x = torch.randn(1, 384, device=device).to(dtype)
    x[0, 40] = 50.0
    bias = torch.randn(rows, device=device).to(dtype)
    expected = reference.linear(x, plain, bias)
    # Of the chunk with the large number all others are rounded to steps of it.
    assert_close(int4_gemv(x, packed, bias, config=config, out_dtype=torch.float32), expected.float(), 3e-3)
    if rows % 2 == 0:
        x[0, 40] = 0.0
        expected = reference.silu_and_mul(reference.linear(x, plain))
        assert_close(int4_gemv(x, packed, gated=True, config=config), expected, 5e-4)


@pytest.mark.parametrize(
    ("name", "group_size", "config"),
    [
        ("nf4", 64, LinearConfig(16, 32, 128)),
        ("fp4", 32, LinearConfig(16, 16, 64, split_k=2)),
        ("nf4", 32, LinearConfig(16, 16, 256)),
        ("fp4", 192, None),
    ],
    ids=["whole", "split", "last step cut", "chosen, a group of the whole row"],
)
def test_product_of_few_tokens(
    name: str, group_size: int, config: LinearConfig | None, device: torch.device, dtype: torch.dtype
) -> None:
    weight = quantized(name, 40, 192, group_size, device)
    x = torch.randn(20, 2, 192, device=device).to(dtype)[:, 0]
    bias = torch.randn(40, device=device).to(dtype)
    got = int4_linear(x, Int4Weight.of(weight), bias, config=config)
    assert_close(got, reference.linear(x, weight.dequantize(dtype), bias), 2e-4)


@pytest.mark.parametrize(("name", "num_tokens"), [("nf4", 2), ("fp4", 17), ("nf4", 65), ("fp4", 257)])
def test_logits_of_any_number_of_tokens(name: str, num_tokens: int, device: torch.device, dtype: torch.dtype) -> None:
    weight = quantized(name, 48, 96, 32, device)
    x = torch.randn(num_tokens, 96, device=device).to(dtype)
    got = make_product(weight).linear(x, None, torch.float32)
    assert got.dtype == torch.float32
    assert_close(got, reference.linear(x.float(), weight.dequantize()), 2e-4 if dtype == torch.float32 else 4e-2)
