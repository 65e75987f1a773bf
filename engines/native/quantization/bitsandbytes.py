"""nf4 and fp4, weight only: the bitsandbytes library's 4-bit formats, without the library.

A code is an index into sixteen values, those of a normal distribution's quantiles (nf4, arXiv 2305.14314) or of a 4-bit
float (fp4), times a scale for 32 consecutive weights or more. The library's own quantizer takes their largest magnitude
for the scale; ours fits it, and lets it be negative, which the format allows: nf4 has more values above zero than below
it. Attention's values are projected in eight bits instead, a fiftieth of most models' weights: that takes a third off
what nf4 costs. Owns the library's layout (two codes a byte, the earlier column in the high half) and its plain PyTorch
meaning.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from engines.native.quantization.feedback import Fitted, TakeGroup, column_by_column, costs_of, spread_errors
from engines.native.quantization.int8 import Int8Quantizer
from engines.native.quantization.weight import Format, QuantizedWeight, relative_costs

GROUP_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # that the library knows
_ROWS_AT_ONCE = 1024
_STARTS = (1.0, 0.92, 0.85, 0.78, 0.7, 1.1)  # times the largest magnitude
_RULES = 0.25  # of a group's costs: a column that an outlier makes outweigh the others
_FAR = (0.1, 1.6)  # times the largest magnitude: no scale beyond is worth a try
_FITS = 1  # from each start
_SMALLEST = 1e-20  # magnitude of a scale, of a group of zeros

# The library's own tables (bitsandbytes.functional.get_4bit_type), by code.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_FP4_MAGNITUDES = (0.0, 0.0625 / 12, 8 / 12, 1.0, 4 / 12, 6 / 12, 2 / 12, 3 / 12)
_FP4 = _FP4_MAGNITUDES + tuple(-magnitude for magnitude in _FP4_MAGNITUDES)


def unpack(codes: Tensor) -> Tensor:
    """uint8 [N, K / 2] to indices [N, K] int32."""
    return torch.stack([codes >> 4, codes & 15], dim=2).flatten(1).int()


def pack(indices: Tensor) -> Tensor:
    """The inverse of `unpack`."""
    pairs = indices.to(torch.uint8).unflatten(1, (-1, 2))
    return (pairs[..., 0] << 4) | pairs[..., 1]


def _decode(table: tuple[float, ...], codes: Tensor) -> Tensor:
    return torch.tensor(table, device=codes.device)[unpack(codes)]


NF4 = Format("nf4", 2, 2, functools.partial(_decode, _NF4))
FP4 = Format("fp4", 2, 2, functools.partial(_decode, _FP4))
FORMATS = {"nf4": NF4, "fp4": FP4}
TABLES = {"nf4": _NF4, "fp4": _FP4}


class BitsAndBytesQuantizer:
    """See weight.Quantizer. Codes and a group's scale are fitted to each other in turns, as int4's are, from a few
    starts, the largest magnitude among them."""

    weighs_columns = spreads_errors = True

    def __init__(self, name: Literal["nf4", "fp4"], group_size: int = 64) -> None:
        assert group_size in GROUP_SIZES
        self.name = name
        self.group_size = group_size

    def quantize(self, weight: Tensor, moments: Tensor | None = None, /) -> QuantizedWeight:
        values, size = _Values.of(self.name, weight.device), self.group_size
        if moments is None:
            costs = torch.ones(1, 1, size, device=weight.device)
            parts = [_fit(rows.float().unflatten(1, (-1, size)), costs, values) for rows in weight.split(_ROWS_AT_ONCE)]
            scales = torch.cat(parts)
        else:
            weight, fitted = spread_errors(weight, moments, size, _take_group(values, size))
            scales = torch.cat([made for (made,) in fitted], 1)
        codes = [
            pack(values.codes[values.ranks(rows.float().unflatten(1, (-1, size)), scale)].flatten(1))
            for rows, scale in zip(weight.split(_ROWS_AT_ONCE), scales.split(_ROWS_AT_ONCE), strict=True)
        ]
        return QuantizedWeight(FORMATS[self.name], torch.cat(codes), scales.squeeze(2))

    quantize_values = quantize_head = Int8Quantizer.quantize


class _Values(NamedTuple):
    """A format's values in ascending order."""

    sorted: Tensor  # [values] float32, no value twice
    codes: Tensor  # [values] uint8, of each of them
    bounds: Tensor  # [values - 1] float32: halfway to the next
    signs: tuple[int, ...]  # of scales that are worth a try

    @classmethod
    def of(cls, name: str, device: torch.device) -> _Values:
        codes = {value: code for code, value in reversed(list(enumerate(TABLES[name])))}  # fp4 has two zeros
        values = torch.tensor(sorted(codes), device=device)
        ranked = torch.tensor([codes[value] for value in sorted(codes)], dtype=torch.uint8, device=device)
        signs = (1,) if torch.equal(values, -values.flip(0)) else (1, -1)
        return cls(values, ranked, (values[1:] + values[:-1]) / 2, signs)

    def ranks(self, weights: Tensor, scales: Tensor) -> Tensor:
        """The place in `sorted` of the value that is nearest to each weight: int32."""
        return torch.bucketize(weights / scales, self.bounds, out_int32=True)


def _take_group(values: _Values, group_size: int) -> TakeGroup:
    """The fastest way for the device to take a group's columns."""
    if values.sorted.is_cuda and importlib.util.find_spec("triton") is not None:
        from engines.native.kernels import triton_feedback

        if group_size <= triton_feedback.WIDEST_GROUP:
            return in_one_launch(values)
    return in_plain_pytorch(values)


def in_plain_pytorch(values: _Values) -> TakeGroup:
    """Column after column, on any device."""
    return column_by_column(
        lambda groups, costs: (_fit(groups, costs, values),),
        lambda columns, fitted: values.sorted[values.ranks(columns, fitted[0])] * fitted[0],
    )


def in_one_launch(values: _Values) -> TakeGroup:
    """By Triton's kernel."""
    from engines.native.kernels import triton_feedback

    device = values.sorted.device
    search = triton_feedback.Search(
        values.sorted,
        torch.tensor([start * sign for start in _STARTS for sign in values.signs], device=device),
        torch.tensor(list(_met_by(values)), device=device).T.contiguous(),
        _FITS,
        _SMALLEST,
        _RULES,
        _FAR,
    )

    def take(group: Tensor, own: Tensor) -> tuple[Fitted, Tensor]:
        costs = relative_costs(costs_of(own).unsqueeze(0)).squeeze(0)
        scales, errors = triton_feedback.take_group(group, own, costs, search)
        return (scales,), errors

    return take


def _fit(groups: Tensor, costs: Tensor, values: _Values) -> Tensor:
    """Scales [N, groups, 1] float32 of [N, groups, group_size]; see spread_errors."""
    costs = relative_costs(costs)
    largest = groups.abs().amax(2, keepdim=True)
    scales = _best(groups, [largest * (sign * start) for start in _STARTS for sign in values.signs], values, costs)
    ruled = (costs.amax(2) > _RULES).nonzero()[:, 1]
    if ruled.numel():
        starts = [
            scales[:, ruled],
            *_meeting_the_costliest(groups[:, ruled], largest[:, ruled], values, costs[:, ruled]),
        ]
        scales[:, ruled] = _best(groups[:, ruled], starts, values, costs[:, ruled])
    return scales


def _best(groups: Tensor, starts: Sequence[Tensor], values: _Values, costs: Tensor) -> Tensor:
    """The scales [N, groups, 1] that err least, of those that start and of what a fit to their codes makes of them."""
    least, best = torch.full_like(starts[0], float("inf")), starts[0]
    for start in starts:
        scale = start
        for _ in range(_FITS + 1):
            scale = torch.where(scale.abs() < _SMALLEST, _SMALLEST, scale)
            near = values.sorted[values.ranks(groups, scale)]
            error = (near * scale).sub_(groups).square_().mul_(costs).sum(2, keepdim=True)
            better = error < least
            least, best = torch.where(better, error, least), torch.where(better, scale, best)
            weighted = near * costs
            scale = (weighted * groups).sum(2, keepdim=True) / (weighted * near).sum(2, keepdim=True).clamp(min=1e-12)
    return best


def _meeting_the_costliest(groups: Tensor, largest: Tensor, values: _Values, costs: Tensor) -> Iterator[Tensor]:
    """The scales [N, groups, 1] at which a value of the format is the costliest weight of its group exactly."""
    costliest = costs.argmax(2, keepdim=True).expand(groups.shape[0], groups.shape[1], 1)
    weight = groups.gather(2, costliest)
    for positive, negative in _met_by(values):
        scale = weight / torch.where(weight > 0, positive, negative)
        yield torch.where((scale > _FAR[0] * largest) & (scale < _FAR[1] * largest), scale, largest)


def _met_by(values: _Values) -> Iterator[tuple[float, float]]:
    """Values that the costliest weight of a group may be met by: of one above zero, and of one below."""
    numbers: list[float] = values.sorted.tolist()
    above, below = [v for v in numbers if v > 0], [v for v in reversed(numbers) if v < 0]
    return zip_longest(above, below, fillvalue=numbers[0])
