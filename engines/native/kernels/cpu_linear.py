"""Linear layers on CPU: weights packed once at load time, any number of rows, sums in float32.

Owns the packed layout and the product. Weights are stored in bfloat16, float16 or float32. At few rows the product is
bound by reading them, so their width is the speed; at many rows it is bound by multiply-adds and reaches nine tenths of
what the processor can do. One kernel serves both, and a row's result is bit for bit the same in a batch of any size.

Activations are multiplied in float32, or, where that was asked for in packing, rounded to bfloat16: twice as fast at
many rows on processors that multiply bfloat16 natively (`HAS_FAST_BFLOAT16`), at a relative error of 2**-9 in each.

Layout: [num_panels, steps, numbers of a step], a panel being PANEL rows of the weight matrix (see `cpu_tiles`), the
last one padded with zeros.
"""

from dataclasses import dataclass

import torch
from numba import int64
from numba.np.numpy_support import carray
from numpy import empty, uint16
from torch import Tensor
from torch.nn import functional

from engines.native.kernels.cpu_compile import helper, kernel, plain
from engines.native.kernels.cpu_ir import HAS_FAST_BFLOAT16, LANES
from engines.native.kernels.cpu_team import TEAM, job, launch
from engines.native.kernels.cpu_tiles import BFLOAT16, BFLOAT16_PAIRS, FLOAT16, FLOAT32, PANEL, TILE_ROWS, panel_tile
from engines.native.kernels.cpu_vector import float32_pointer, keep_alive, to_bfloat16, uint16_pointer

_KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight matrix [num_rows, num_columns] in the kernel's layout; made by `pack_weight`."""

    panels: Tensor  # [num_panels, steps, numbers of a step], bfloat16, float16 or float32, contiguous
    kind: int  # the layout, one of `cpu_tiles`'
    num_rows: int  # outputs
    num_columns: int  # inputs


def pack_weight(
    weight: Tensor, dtype: torch.dtype = torch.bfloat16, *, bfloat16_products: bool = False
) -> PackedWeight:
    """Round a weight matrix [N, K] to dtype and lay it out for `linear`.

    With bfloat16_products, `linear` rounds its activations to bfloat16 too, where that is faster; elsewhere the request
    has no effect. Raises ValueError for another dtype than bfloat16, float16 or float32.
    """
    if dtype not in _KINDS:
        raise ValueError(f"weights can be packed as bfloat16, float16 or float32, not {dtype}")
    num_rows, num_columns = weight.shape
    in_pairs = bfloat16_products and dtype == torch.bfloat16 and HAS_FAST_BFLOAT16
    padding = (0, num_columns % 2 if in_pairs else 0, 0, -num_rows % PANEL)
    rows = functional.pad(weight.to(dtype), padding) if any(padding) else weight.to(dtype)
    if in_pairs:
        panels = rows.view(-1, PANEL, rows.shape[1] // 2, 2).transpose(1, 2).reshape(-1, rows.shape[1] // 2, PANEL * 2)
        return PackedWeight(panels.contiguous(), BFLOAT16_PAIRS, num_rows, num_columns)
    halves = rows.view(-1, 2, LANES, num_columns)
    order = (0, 3, 2, 1) if dtype == torch.bfloat16 else (0, 3, 1, 2)
    panels = halves.permute(order).reshape(-1, num_columns, PANEL).contiguous()
    return PackedWeight(panels, _KINDS[dtype], num_rows, num_columns)


def linear(x: Tensor, weight: PackedWeight | Tensor, bias: Tensor | None = None) -> Tensor:
    """x [num_tokens, K] float32 times weight [N, K] transposed, plus bias [N] float32: [num_tokens, N] float32.

    A weight that is a plain tensor goes to torch's own product.
    """
    if not isinstance(weight, PackedWeight):
        return functional.linear(x, weight, bias)
    assert plain(torch.float32, x)
    assert x.shape[1] == weight.num_columns
    padded_rows = weight.panels.shape[0] * PANEL  # the kernel writes whole panels
    out = torch.empty((x.shape[0], padded_rows))
    bias_address = 0
    if bias is not None:
        assert plain(torch.float32, bias)
        assert bias.shape[0] == weight.num_rows
        bias_address = bias.data_ptr()
    _linear(
        TEAM.address,
        weight.kind,
        x.data_ptr(),
        x.shape[0],
        weight.num_columns,
        weight.panels.data_ptr(),
        weight.num_rows,
        bias_address,
        out.data_ptr(),
    )
    return out if padded_rows == weight.num_rows else out[:, : weight.num_rows].contiguous()


def _panel_product(kind):
    """A helper: all rows of x, `stride` bytes apart, times one panel of so many steps stored as `kind`."""

    @helper
    def product(x, stride, num_rows, steps, panel, out, out_stride):
        row = 0
        while row < num_rows:
            source, target, left = x + row * stride, out + row * out_stride, num_rows - row
            if left >= TILE_ROWS:
                panel_tile(TILE_ROWS, kind, 0, source, stride, panel, steps, target, out_stride)
                row += TILE_ROWS
            elif left >= 4:
                panel_tile(4, kind, 0, source, stride, panel, steps, target, out_stride)
                row += 4
            elif left >= 2:
                panel_tile(2, kind, 0, source, stride, panel, steps, target, out_stride)
                row += 2
            else:
                panel_tile(1, kind, 0, source, stride, panel, steps, target, out_stride)
                row += 1

    return product


_float32_product, _bfloat16_product, _float16_product = map(_panel_product, (FLOAT32, BFLOAT16, FLOAT16))
# Its instruction must not be compiled where it does not exist; nobody packs pairs there.
_pairs_product = _panel_product(BFLOAT16_PAIRS if HAS_FAST_BFLOAT16 else FLOAT32)


@helper
def _panel(index, kind, x, x_stride, num_rows, steps, panels, num_outputs, bias, out):
    """All rows of x times panel number `index`, bias included."""
    num_panels = (num_outputs + PANEL - 1) // PANEL
    panel = panels + index * steps * PANEL * (4 if kind in (FLOAT32, BFLOAT16_PAIRS) else 2)
    start, stride = index * PANEL, num_panels * PANEL * 4
    target = out + start * 4
    if kind == BFLOAT16:
        _bfloat16_product(x, x_stride, num_rows, steps, panel, target, stride)
    elif kind == BFLOAT16_PAIRS:
        _pairs_product(x, x_stride, num_rows, steps, panel, target, stride)
    elif kind == FLOAT16:
        _float16_product(x, x_stride, num_rows, steps, panel, target, stride)
    else:
        _float32_product(x, x_stride, num_rows, steps, panel, target, stride)
    if bias != 0:
        outputs = carray(float32_pointer(out), (num_rows, num_panels * PANEL))
        addend = carray(float32_pointer(bias), num_outputs)
        for row in range(num_rows):
            for column in range(start, min(start + PANEL, num_outputs)):
                outputs[row, column] += addend[column]


@helper
def _round_rows(item, x, num_rows, num_columns, steps, rounded):
    """TILE_ROWS rows of x as bfloat16, padded with zero to whole pairs."""
    for row in range(item * TILE_ROWS, min((item + 1) * TILE_ROWS, num_rows)):
        source = carray(float32_pointer(x + row * num_columns * 4), num_columns)
        target = carray(uint16_pointer(rounded + row * steps * 4), steps * 2)
        target[steps * 2 - 1] = 0
        for column in range(num_columns):
            target[column] = to_bfloat16(source[column])


@kernel("void(int64, int64, int64, int64, int64, int64, int64, int64, int64)")
def _linear(team, kind, x, num_rows, num_columns, panels, num_outputs, bias, out):
    """Grid: panels, so that each thread streams through the packed weight in the order of memory."""
    num_panels = (num_outputs + PANEL - 1) // PANEL
    if kind == BFLOAT16_PAIRS:
        steps = (num_columns + 1) // 2
        rounded = empty(num_rows * steps * 2, uint16)
        source = int64(rounded.ctypes.data)
        num_tiles = (num_rows + TILE_ROWS - 1) // TILE_ROWS
        launch(team, job(num_tiles, _round_rows, (x, num_rows, num_columns, steps, source)))
        pairs = (kind, source, steps * 4, num_rows, steps, panels, num_outputs, bias, out)
        launch(team, job(num_panels, _panel, pairs))
        keep_alive(rounded)
    else:
        numbers = (kind, x, num_columns * 4, num_rows, num_columns, panels, num_outputs, bias, out)
        launch(team, job(num_panels, _panel, numbers))
