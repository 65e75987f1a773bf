"""Linear layers on CPU: weights packed once at load time, float32 arithmetic, any number of rows.

Owns the packed layout and the product. Weights are stored in bfloat16 (default), float16 or float32; activations and
sums are float32. At few rows the product is bound by reading the weights, so their width is the speed; at many rows it
is bound by multiply-adds and reaches the rate of a float32 BLAS. One kernel serves both, and a row's result is bit for
bit the same in a batch of any size.

Layout: [num_panels, K, PANEL], a panel being 2 * LANES rows of the weight matrix (see `cpu_tiles`), the last one
padded with zeros.
"""

from dataclasses import dataclass

import torch
from numba.np.numpy_support import carray
from torch import Tensor
from torch.nn import functional

from engines.native.kernels.cpu_compile import helper, kernel, plain
from engines.native.kernels.cpu_ir import LANES
from engines.native.kernels.cpu_team import TEAM, job, launch
from engines.native.kernels.cpu_tiles import BFLOAT16, FLOAT16, FLOAT32, PANEL, TILE_ROWS, panel_tile
from engines.native.kernels.cpu_vector import float32_pointer

_KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight matrix [num_rows, num_columns] in the kernel's layout; made by `pack_weight`."""

    panels: Tensor  # [ceil(num_rows / PANEL), num_columns, PANEL], bfloat16, float16 or float32, contiguous
    num_rows: int  # outputs
    num_columns: int  # inputs

    @property
    def dtype(self) -> torch.dtype:
        return self.panels.dtype


def pack_weight(weight: Tensor, dtype: torch.dtype = torch.bfloat16) -> PackedWeight:
    """Round a weight matrix [N, K] to dtype and lay it out for `linear`.

    Raises ValueError for another dtype than bfloat16, float16 or float32.
    """
    if dtype not in _KINDS:
        raise ValueError(f"weights can be packed as bfloat16, float16 or float32, not {dtype}")
    num_rows, num_columns = weight.shape
    padding = -num_rows % PANEL
    rows = functional.pad(weight.to(dtype), (0, 0, 0, padding)) if padding else weight.to(dtype)
    halves = rows.view(-1, 2, LANES, num_columns)
    # bfloat16 pairs column l with column l + LANES in one 32-bit lane
    order = (0, 3, 2, 1) if dtype == torch.bfloat16 else (0, 3, 1, 2)
    panels = halves.permute(order).reshape(-1, num_columns, PANEL).contiguous()
    return PackedWeight(panels, num_rows, num_columns)


def weight_rows(weight: PackedWeight, row_ids: Tensor) -> Tensor:
    """Rows of a packed matrix, float32 [len(row_ids), K]: the embedding lookup of a model with tied embeddings."""
    panel, column = row_ids // PANEL, row_ids % PANEL
    if weight.dtype == torch.bfloat16:
        column = column % LANES * 2 + column // LANES
    return weight.panels[panel, :, column].float()


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
        _KINDS[weight.dtype],
        x.data_ptr(),
        x.shape[0],
        weight.num_columns,
        weight.panels.data_ptr(),
        weight.num_rows,
        bias_address,
        out.data_ptr(),
    )
    return out if padded_rows == weight.num_rows else out[:, : weight.num_rows].contiguous()


def _panel_product(kind: int):
    """A helper: all rows of x times one panel stored as `kind`."""

    @helper
    def product(x, num_rows, num_columns, panel, out, out_stride):
        stride, row = num_columns * 4, 0
        while row < num_rows:
            source, target, left = x + row * stride, out + row * out_stride, num_rows - row
            if left >= TILE_ROWS:
                panel_tile(TILE_ROWS, kind, 0, source, stride, panel, num_columns, target, out_stride)
                row += TILE_ROWS
            elif left >= 4:
                panel_tile(4, kind, 0, source, stride, panel, num_columns, target, out_stride)
                row += 4
            elif left >= 2:
                panel_tile(2, kind, 0, source, stride, panel, num_columns, target, out_stride)
                row += 2
            else:
                panel_tile(1, kind, 0, source, stride, panel, num_columns, target, out_stride)
                row += 1

    return product


_float32_product, _bfloat16_product, _float16_product = map(_panel_product, (FLOAT32, BFLOAT16, FLOAT16))


@helper
def _panel(index, kind, x, num_rows, num_columns, panels, num_outputs, bias, out):
    """All rows of x times panel number `index`, bias included."""
    num_panels = (num_outputs + PANEL - 1) // PANEL
    panel = panels + index * num_columns * PANEL * (4 if kind == FLOAT32 else 2)
    start, stride = index * PANEL, num_panels * PANEL * 4
    target = out + start * 4
    if kind == BFLOAT16:
        _bfloat16_product(x, num_rows, num_columns, panel, target, stride)
    elif kind == FLOAT16:
        _float16_product(x, num_rows, num_columns, panel, target, stride)
    else:
        _float32_product(x, num_rows, num_columns, panel, target, stride)
    if bias != 0:
        outputs = carray(float32_pointer(out), (num_rows, num_panels * PANEL))
        addend = carray(float32_pointer(bias), num_outputs)
        for row in range(num_rows):
            for column in range(start, min(start + PANEL, num_outputs)):
                outputs[row, column] += addend[column]


@kernel("void(int64, int64, int64, int64, int64, int64, int64, int64, int64)")
def _linear(team, kind, x, num_rows, num_columns, panels, num_outputs, bias, out):
    """Grid: panels, so that each thread streams through the packed weight in the order of memory."""
    num_panels = (num_outputs + PANEL - 1) // PANEL
    launch(team, job(num_panels, _panel, (kind, x, num_rows, num_columns, panels, num_outputs, bias, out)))
