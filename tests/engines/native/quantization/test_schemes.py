"""Each scheme's codes mean what the reference says, err by no more than they must, and can be cut for ranks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from config.engines import NativeSettings
from engines.errors import EngineUnavailable
from engines.native.quantization import choose_quantizer
from engines.native.quantization.bitsandbytes import FORMATS, TABLES, pack, unpack
from engines.native.quantization.fp8 import LARGEST, quantize_tokens
from engines.native.quantization.int4 import pack_words, unpack_words
from engines.native.quantization.weight import QuantizedWeight, Quantizer, check_groups, join
from tests.engines.native.quantization.bitsandbytes_library import load_library

SCHEMES = pytest.mark.parametrize(
    ("scheme", "bits", "error"),
    [("fp8", 8.2, 0.03), ("int8", 8.2, 0.012), ("int4", 5.1, 0.08), ("nf4", 4.6, 0.095), ("fp4", 4.6, 0.135)],
    ids=["fp8", "int8", "int4", "nf4", "fp4"],
)

NAMES = pytest.mark.parametrize("scheme", ["fp8", "int8", "int4", "nf4", "fp4"])


def quantizer(scheme: str, **settings: object) -> Quantizer:
    chosen = choose_quantizer(NativeSettings.model_validate({"quantize": scheme, **settings}))
    assert chosen is not None
    return chosen


def quantized_by(
    scheme: str, weight: torch.Tensor, importance: torch.Tensor | None = None, **options: object
) -> QuantizedWeight:
    moments = None if importance is None else importance.diag().unsqueeze(0)
    made = quantizer(scheme, **options).quantize(weight, moments)
    assert not isinstance(made, torch.Tensor)
    return made


def matrix(rows: int = 96, columns: int = 256) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * columns)
    return torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator)


@SCHEMES
def test_a_scheme_keeps_a_matrix_in_its_bits_within_its_error(scheme: str, bits: float, error: float) -> None:
    weight = matrix()
    quantized = quantizer(scheme).quantize(weight)
    assert not isinstance(quantized, torch.Tensor)
    assert quantized.shape == weight.shape
    assert quantized.nbytes * 8 / weight.numel() < bits
    assert (quantized.dequantize() - weight).norm() < error * weight.norm()


@NAMES
def test_rows_and_groups_cut_and_join_without_changing_a_weight(scheme: str) -> None:
    quantized = quantizer(scheme).quantize(matrix())
    assert not isinstance(quantized, torch.Tensor)
    whole = quantized.dequantize()
    part = quantized.part(slice(5, 40), slice(64, 192))
    assert torch.equal(part.dequantize(), whole[5:40, 64:192])
    halves = [quantized.part(rows, slice(0, 256)) for rows in (slice(0, 40), slice(40, 96))]
    assert torch.equal(join(halves).dequantize(), whole)


@NAMES
def test_rows_are_quantized_alone(scheme: str) -> None:
    weight = matrix()
    whole, part = quantizer(scheme).quantize(weight), quantizer(scheme).quantize(weight[7:20])
    assert not isinstance(whole, torch.Tensor)
    assert not isinstance(part, torch.Tensor)
    assert torch.equal(whole.dequantize()[7:20], part.dequantize())


@NAMES
def test_a_matrix_of_zeros_stays_zero(scheme: str) -> None:
    quantized = quantizer(scheme).quantize(torch.zeros(4, 128))
    assert not isinstance(quantized, torch.Tensor)
    assert torch.count_nonzero(quantized.dequantize().abs() > 1e-6) == 0


@given(st.lists(st.integers(0, 15), min_size=64, max_size=64))
def test_words_hold_every_code(codes: list[int]) -> None:
    tensor = torch.tensor(codes).view(2, 32)
    words = pack_words(tensor)
    assert words.shape == (2, 4)
    assert torch.equal(unpack_words(words).long(), tensor)
    assert torch.equal(unpack(pack(tensor)).long(), tensor)


def test_words_are_in_the_order_of_the_matrix_units() -> None:
    codes = torch.zeros(1, 32, dtype=torch.int64)
    codes[0, 16 + 2 * 2], codes[0, 16 + 2 * 2 + 1], codes[0, 8 + 2 * 3] = 9, 7, 5
    assert pack_words(codes).tolist() == [[0, 0, 9 << 8 | 7 << 24, 5 << 4]]


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_four_bit_floats_mean_what_the_library_says_and_err_less_than_its_own(name: str) -> None:
    weight = matrix()
    library = load_library()
    codes, state = library.quantize_4bit(weight, blocksize=64, compress_statistics=False, quant_type=name)
    quantized = quantized_by(name, weight, quantize_group_size=64)
    assert quantized.format is FORMATS[name]
    own = (library.dequantize_4bit(codes, state) - weight).square().unflatten(1, (-1, 64)).sum(2)
    ours = (quantized.dequantize() - weight).square().unflatten(1, (-1, 64)).sum(2)
    assert (ours <= own * (1 + 1e-5)).all()
    assert ours.sum() < 0.95 * own.sum()
    assert bool((quantized.scales < 0).any()) == (name == "nf4"), "whose values are not symmetric"
    state.absmax = quantized.scales.flatten()
    assert torch.equal(quantized.dequantize(), library.dequantize_4bit(quantized.codes.view(-1, 1), state))


def plain_int4(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """Rounded to sixteen steps of each group's whole range."""
    groups = weight.unflatten(1, (-1, group_size))
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    scale = ((high - low) / 15).half().float()
    offset = ((high + low) / 2 + scale / 2).half().float()
    return (((groups - offset) / scale).round().clamp(-8, 7) * scale + offset).flatten(1)


@given(st.integers(0, 2**31), st.sampled_from([32, 64]), st.floats(0.0, 3.0), st.booleans())
@settings(max_examples=25, deadline=None)
def test_no_group_of_int4_costs_more_than_plain_rounding(
    seed: int, group_size: int, spread: float, weighs: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, 192, generator=generator) * (torch.randn(8, 192, generator=generator) * spread).exp()
    importance = (torch.randn(192, generator=generator) * 4).exp() if weighs else torch.ones(192)
    quantized = quantized_by("int4", weight, importance, quantize_group_size=group_size)

    def costs(approximation: torch.Tensor) -> torch.Tensor:
        return ((approximation - weight).square() * importance).unflatten(1, (-1, group_size)).sum(2)

    assert (costs(quantized.dequantize()) <= costs(plain_int4(weight, group_size)) * (1 + 1e-4)).all()


@NAMES
def test_columns_that_matter_err_less(scheme: str) -> None:
    weight = matrix(64, 256)
    importance = torch.ones(256)
    importance[::16] = 1000.0
    squares = [(quantized_by(scheme, weight, known).dequantize() - weight).square() for known in (None, importance)]
    alike, weighed = ((square * importance).sum() for square in squares)
    assert weighed < 0.7 * alike if quantizer(scheme).weighs_columns else weighed == alike


@pytest.mark.parametrize("group_size", [32, 64])
def test_weights_on_a_grid_of_sixteen_steps_are_kept_exactly(group_size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(-8, 8, (16, 4, group_size), generator=generator)
    codes[..., 0], codes[..., 1] = -8, 7
    scale = torch.rand(16, 4, 1, generator=generator).half().float() / 64
    offset = torch.randint(-100, 100, (16, 4, 1), generator=generator) * scale.half().float()
    weight = (codes * scale.half().float() + offset.half().float()).flatten(1)
    importance = torch.rand(4 * group_size, generator=generator) + 0.1
    quantized = quantized_by("int4", weight, importance, quantize_group_size=group_size)
    torch.testing.assert_close(quantized.dequantize(), weight, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_values_of_a_four_bit_float_are_kept_exactly(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    values = torch.tensor(TABLES[name])[torch.randint(0, 16, (16, 4, 64), generator=generator)]
    values[..., 0] = 1.0  # a group without its largest value may have another scale
    weight = (values * torch.rand(16, 4, 1, generator=generator)).flatten(1)
    torch.testing.assert_close(quantized_by(name, weight, quantize_group_size=64).dequantize(), weight)


def test_tokens_keep_their_largest_magnitude_in_fp8() -> None:
    x = matrix(5, 64)
    x[3] = 0
    codes, scales = quantize_tokens(x)
    assert codes.dtype == torch.float8_e4m3fn
    assert codes.float().abs().amax(dim=1)[:3].tolist() == [LARGEST] * 3
    torch.testing.assert_close(codes.float() * scales, x, atol=0, rtol=0.07)


@pytest.mark.parametrize("scheme", ["int4", "nf4", "fp4"])
def test_smaller_groups_err_less(scheme: str) -> None:
    weight = matrix(64, 512)
    errors = []
    for group_size in (32, 64, 128):
        quantized = quantizer(scheme, quantize_group_size=group_size).quantize(weight)
        assert not isinstance(quantized, torch.Tensor)
        errors.append(float((quantized.dequantize() - weight).norm()))
    assert errors == sorted(errors)


def test_groups_that_do_not_divide_are_refused_by_size_and_width() -> None:
    with pytest.raises(EngineUnavailable, match=r"groups of 128 .* down_proj, .* 576 input columns .* 128 does not"):
        check_groups("int4", 128, 576, "down_proj")
    quantized = quantizer("int4").quantize(matrix())
    assert not isinstance(quantized, torch.Tensor)
    with pytest.raises(EngineUnavailable, match="falls within a group"):
        quantized.part(slice(None), slice(0, 80))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quantize": "fp8", "quantize_group_size": 64}, "is for int4, nf4 and fp4; with quantize 'fp8'"),
        ({"quantize_group_size": 64}, "nothing is quantized"),
        ({"quantize": "nf4", "quantize_group_size": 96}, "is 96; nf4 takes one of 32, 64, 128"),
        ({"quantize": "int4", "quantize_group_size": 48}, "takes multiples of 32"),
    ],
    ids=["per channel", "none", "not the library's", "not a multiple"],
)
def test_a_group_size_that_makes_no_sense_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(EngineUnavailable, match=words):
        choose_quantizer(NativeSettings.model_validate(settings))
