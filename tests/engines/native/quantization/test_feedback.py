"""Errors that later columns make up for: outputs err less, no piece sees another, ranks choose what one does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from config.engines import NativeSettings
from engines.native.quantization import choose_quantizer
from engines.native.quantization.feedback import (
    inverse_factor,
    numbers_of_ranks,
    piece_of,
    second_moments,
)
from engines.native.quantization.weight import QuantizedWeight

SCHEMES = pytest.mark.parametrize("scheme", ["nf4", "fp4"])


def quantized(scheme: str, weight: Tensor, moments: Tensor | None = None) -> Tensor:
    quantizer = choose_quantizer(NativeSettings.model_validate({"quantize": scheme}))
    assert quantizer is not None
    made = quantizer.quantize(weight, moments)
    assert isinstance(made, QuantizedWeight)
    return made.dequantize()


def example(columns: int = 256) -> tuple[Tensor, Tensor]:
    """A weight [48, columns], and inputs [2048, columns] of which a fourth as many numbers explain the most."""
    generator = torch.Generator().manual_seed(columns)
    sources = torch.randn(2048, columns // 4, generator=generator)
    mixed = sources @ torch.randn(columns // 4, columns, generator=generator) / (columns / 4) ** 0.5
    x = (mixed + 0.3 * torch.randn(2048, columns, generator=generator)) * (
        torch.randn(columns, generator=generator).exp()
    )
    return torch.randn(48, columns, generator=generator) / 16, x


def output_error(weight: Tensor, approximation: Tensor, x: Tensor) -> float:
    return float((x @ (weight - approximation).T).square().sum())


@SCHEMES
def test_outputs_err_far_less_than_by_weighing_columns_alone(scheme: str) -> None:
    weight, x = example()
    moments = second_moments(x[:1024], 256)
    alone = quantized(scheme, weight, moments * torch.eye(256))
    together = quantized(scheme, weight, moments)
    others = x[1024:]  # not those that codes were chosen by
    assert output_error(weight, together, others) < 0.7 * output_error(weight, alone, others)


@SCHEMES
def test_a_piece_is_quantized_as_if_it_were_alone_and_so_are_rows(scheme: str) -> None:
    weight, x = example()
    whole = quantized(scheme, weight, second_moments(x, 64))
    for start in range(0, 256, 128):
        half = slice(start, start + 128)
        part = quantized(scheme, weight[:, half], second_moments(x[:, half], 64))
        assert torch.equal(part, whole[:, half])
    part = quantized(scheme, weight[5:20], second_moments(x, 64))
    unlike = (part != whole[5:20]).any(dim=1)  # sums in another order may decide a tie, and what follows it
    assert unlike.sum() <= 1


def test_columns_that_are_never_used_or_always_alike_do_no_harm() -> None:
    weight, x = example()
    x[:, 7], x[:, 9] = 0, x[:, 8]
    made = quantized("nf4", weight, second_moments(x, 256))
    assert made.isfinite().all()
    assert (made - weight).norm() < 0.5 * weight.norm()


def test_the_factor_is_that_of_the_inverse_of_the_damped_moments() -> None:
    _, x = example(64)
    moments = second_moments(x, 32)
    damped = moments + 0.3 * moments.diagonal(dim1=1, dim2=2).diag_embed()
    factor = inverse_factor(moments)
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.mT @ factor @ damped, torch.eye(32).expand(2, -1, -1), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("columns", "heads", "intermediate", "group_size", "piece"),
    [
        pytest.param(12288, 32, 12288, 64, 1536, id="an eighth"),
        pytest.param(1536, 9, 1536, 32, 512, id="one or three ranks"),
        pytest.param(576, 9, 1536, 64, 192, id="heads"),
        pytest.param(128, 8, 128, 64, 64, id="more ranks would cut a group"),
        pytest.param(4096, 32, 12288, 0, 512, id="a scale for a row"),
        pytest.param(28672, 7, 28672, 64, 2048, id="halved for the time it takes"),
    ],
)
def test_a_piece_is_what_no_number_of_ranks_cuts(
    columns: int, heads: int, intermediate: int, group_size: int, piece: int
) -> None:
    for ranks in (1, 2, 3, 4, 6, 8):
        if heads % ranks == 0 and columns % (ranks * max(group_size, 1)) == 0:
            assert piece_of(columns, numbers_of_ranks(ranks, heads, intermediate), group_size) == piece
            assert columns // ranks % piece == 0
