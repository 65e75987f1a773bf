"""A group of columns in one launch chooses what plain PyTorch chooses."""

from __future__ import annotations

import pytest
import torch

from engines.native.kernels import triton_feedback
from engines.native.quantization.bitsandbytes import _take_group, _Values, in_one_launch, in_plain_pytorch
from engines.native.quantization.feedback import inverse_factor, second_moments, spread_errors

SAME = 1e-4  # relative


def inputs(device: torch.device, columns: int, *, ruled: bool) -> torch.Tensor:
    """[1024, columns] that go along with each other; with `ruled` some columns outweigh their group."""
    generator = torch.Generator().manual_seed(columns)
    sources = torch.randn(1024, columns // 2, generator=generator)
    x = sources @ torch.randn(columns // 2, columns, generator=generator) / columns**0.5
    x += 0.3 * torch.randn(1024, columns, generator=generator)
    if ruled:
        x[:, :: columns // 3] *= 50
    return x.to(device)


@pytest.mark.parametrize("name", ["nf4", "fp4"])
@pytest.mark.parametrize(
    ("num_rows", "columns", "piece", "size", "ruled"),
    [(70, 64, 32, 32, False), (9, 128, 128, 64, True)],
)
def test_scales_and_errors_are_those_of_plain_pytorch(
    device: torch.device, name: str, num_rows: int, columns: int, piece: int, size: int, ruled: bool
):
    values = _Values.of(name, device)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(num_rows, columns, generator=generator).to(device) / 16
    weight[3] = 0
    factor = inverse_factor(second_moments(inputs(device, columns, ruled=ruled), piece))
    own = factor[:, :size, :size]
    group = weight.T.contiguous().view(columns // piece, piece, num_rows)[:, :size]
    expected_group, got_group = (group.clone(memory_format=torch.contiguous_format) for _ in range(2))
    (expected,), expected_errors = in_plain_pytorch(values)(expected_group, own)
    (scales,), errors = in_one_launch(values)(got_group, own)
    # A near tie, of scales or of codes, goes either way, and what comes after it in that row follows.
    alike = (scales - expected).abs().squeeze(2) <= SAME * expected.abs().squeeze(2)
    alike &= ((errors - expected_errors).abs() <= 1e-6 + SAME * expected_errors.abs()).all(1).T
    assert (~alike).sum() <= 2 + alike.numel() // 20
    rows = alike.T[:, None].expand_as(group)
    torch.testing.assert_close(got_group[rows], expected_group[rows], rtol=SAME, atol=1e-6)
    ours, theirs = (e.square().sum(1) for e in (errors, expected_errors))
    assert ours.sum() < 1.02 * theirs.sum()
    assert (ours <= 1.5 * theirs + 1e-6).all()


def test_a_matrix_is_quantized_as_well_as_in_plain_pytorch(device: torch.device):
    values = _Values.of("nf4", device)
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(20, 128, generator=generator).to(device) / 16
    x = inputs(device, 128, ruled=False)
    moments = second_moments(x, 128)

    def output_error(take: object) -> float:
        columns, made = spread_errors(weight, moments, 64, take)
        scales = torch.cat([fitted[0] for fitted in made], 1)
        near = values.sorted[values.ranks(columns.unflatten(1, (-1, 64)), scales)] * scales
        return float((x @ (near.flatten(1) - weight).T).square().sum())

    assert output_error(in_one_launch(values)) == pytest.approx(output_error(in_plain_pytorch(values)), rel=0.02)


@pytest.mark.gpu
def test_a_gpu_takes_groups_in_one_launch_up_to_a_width():
    values = _Values.of("nf4", torch.device("cuda"))
    widest = triton_feedback.WIDEST_GROUP
    assert _take_group(values, widest).__qualname__.startswith("in_one_launch")
    assert _take_group(values, 2 * widest).__qualname__.startswith("column_by_column")
