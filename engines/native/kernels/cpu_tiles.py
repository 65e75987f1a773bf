"""The register-blocked products that CPU kernels spend their time in. For use inside compiled functions only.

Owns `panel_tile`, of the linear layers and prefill attention, and `row_dots` and `add_weighted`, of decode attention.
Arguments are addresses, and strides in bytes; arithmetic is float32 whatever the numbers are stored as.

A panel holds PANEL = 2 * LANES columns of a matrix, one step (row of the matrix) after the other:

    FLOAT32, FLOAT16   [step][PANEL]          columns in order
    BFLOAT16           [step][LANES][2]       column l in the low and column l + LANES in the high half of 32 bits, so
                                              that one load, a shift and a mask give two vectors of float32
    BFLOAT16_PAIRS     [step][PANEL][2]       a step is two rows of the matrix: what the processor multiplies at once;
                                              x, too, is bfloat16
"""

from typing import Any

import llvmlite.ir as ir
import torch
from numba import types

from engines.native.kernels.cpu_compile import helper, instruction
from engines.native.kernels.cpu_ir import (
    BYTE_VECTOR,
    FLOAT,
    HALF_VECTOR,
    INT32,
    INT64,
    INT_VECTOR,
    LANES,
    SHORT_VECTOR,
    VECTOR,
    ZEROS,
    broadcast,
    call_llvm,
    load,
    loop,
    multiply_add,
    multiply_pairs_add,
    offset,
    spread_int,
    store,
    widen_bfloat16,
    widen_e4m3,
)

PANEL = 2 * LANES
TILE_ROWS = 8 if LANES == 16 else 4  # most rows of a tile: their sums take half of the vector registers
FLOAT32, BFLOAT16, FLOAT16, BFLOAT16_PAIRS, E4M3 = 0, 1, 2, 3, 4  # how numbers are stored
CACHE_KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float8_e4m3fn: E4M3}  # of keys and values


@helper
def item_bytes(kind):
    """Of one number of a cache."""
    return 4 if kind == FLOAT32 else 2 if kind == BFLOAT16 else 1


@instruction(types.void(*[types.int64] * 6), constants=3)
def panel_tile(
    builder: Any,
    num_rows: int,
    kind: int,
    accumulate: int,
    x: Any,
    x_stride: Any,
    panel: Any,
    steps: Any,
    out: Any,
    out_stride: Any,
) -> None:
    """out[num_rows, PANEL] = (out if accumulate) + x[num_rows, steps] times the panel's steps.

    num_rows is at most TILE_ROWS, kind how the panel is stored; out is float32, and so is x unless the panel holds
    pairs. Every output is one chain of multiply-adds over the steps in order, whatever num_rows is: a row's result does
    not depend on the rows beside it.
    """
    rows = range(num_rows)
    number_type, multiply = (INT32, multiply_pairs_add) if kind == BFLOAT16_PAIRS else (FLOAT, multiply_add)
    x_rows = [offset(builder, x, x_stride, row) for row in rows]
    out_rows = [offset(builder, out, out_stride, row) for row in rows]
    outputs = [offset(builder, address, LANES * 4, half) for address in out_rows for half in (0, 1)]
    initial = [load(builder, VECTOR, address) if accumulate else ZEROS for address in outputs]
    with loop(builder, steps, initial) as (step, sums, results):
        low, high = _panel_step(builder, kind, panel, step)
        for row in rows:
            number = broadcast(builder, load(builder, number_type, offset(builder, x_rows[row], 4, step)))
            results.append(multiply(builder, number, low, sums[2 * row]))
            results.append(multiply(builder, number, high, sums[2 * row + 1]))
    for address, value in zip(outputs, results, strict=True):
        store(builder, value, address)


def _panel_step(builder: Any, kind: int, panel: Any, step: Any) -> tuple[Any, Any]:
    """The panel's numbers of one step, ready to multiply: columns 0 to LANES - 1, and the rest."""
    if kind == BFLOAT16:
        pairs = load(builder, INT_VECTOR, offset(builder, panel, PANEL * 2, step))
        low, high = builder.shl(pairs, spread_int(16)), builder.and_(pairs, spread_int(0xFFFF0000))
        return builder.bitcast(low, VECTOR), builder.bitcast(high, VECTOR)
    if kind == FLOAT16:
        start = offset(builder, panel, PANEL * 2, step)
        low, high = (load(builder, HALF_VECTOR, offset(builder, start, LANES * 2, half)) for half in (0, 1))
        return builder.fpext(low, VECTOR), builder.fpext(high, VECTOR)
    start, vector_type = offset(builder, panel, PANEL * 4, step), VECTOR if kind == FLOAT32 else INT_VECTOR
    low, high = (load(builder, vector_type, offset(builder, start, LANES * 4, half)) for half in (0, 1))
    return low, high


@instruction(types.void(*[types.int64] * 6), constants=3)
def row_dots(
    builder: Any,
    num_rows: int,
    kind: int,
    vectors: int,
    x: Any,
    x_stride: Any,
    y: Any,
    blocks: Any,
    out: Any,
    out_stride: Any,
) -> None:
    """out[row] = sum over blocks * vectors * LANES numbers of x[row] * y, for num_rows float32 rows.

    kind is how y is stored: FLOAT32, or BFLOAT16 or E4M3 with the numbers in order.
    """
    rows = [offset(builder, x, x_stride, row) for row in range(num_rows)]
    with loop(builder, blocks, [ZEROS] * num_rows) as (block, sums, results):
        results.extend(sums)
        for vector in range(vectors):
            index = builder.add(builder.mul(block, ir.Constant(INT64, vectors)), ir.Constant(INT64, vector))
            numbers = _load_row(builder, kind, y, index)
            for row in range(num_rows):
                others = _load_row(builder, FLOAT32, rows[row], index)
                results[row] = multiply_add(builder, others, numbers, results[row])
    for row, total in enumerate(results):
        arguments = [ir.Constant(FLOAT, 0.0), total]
        dot = call_llvm(builder, f"llvm.vector.reduce.fadd.v{LANES}f32", FLOAT, arguments, ("reassoc",))
        store(builder, dot, offset(builder, out, out_stride, row))


@instruction(types.void(*[types.int64] * 7), constants=3)
def add_weighted(
    builder: Any,
    num_rows: int,
    kind: int,
    vectors: int,
    weights: Any,
    weights_stride: Any,
    y: Any,
    offsets: Any,
    count: Any,
    out: Any,
    out_stride: Any,
) -> None:
    """out[row, :n] += sum over j < count of weights[row, j] * the n numbers at y + offsets[j], n = vectors * LANES.

    Sums run over j in order. offsets is the address of int64 numbers, in bytes; kind is how y is stored, as in
    `row_dots`.
    """
    weight_rows = [offset(builder, weights, weights_stride, row) for row in range(num_rows)]
    out_rows = [offset(builder, out, out_stride, row) for row in range(num_rows)]
    outputs = [offset(builder, address, LANES * 4, vector) for address in out_rows for vector in range(vectors)]
    with loop(builder, count, [load(builder, VECTOR, address) for address in outputs]) as (j, sums, results):
        start = builder.add(y, load(builder, INT64, offset(builder, offsets, 8, j)))
        numbers = [_load_row(builder, kind, start, vector) for vector in range(vectors)]
        for row in range(num_rows):
            weight = broadcast(builder, load(builder, FLOAT, offset(builder, weight_rows[row], 4, j)))
            for vector in range(vectors):
                results.append(multiply_add(builder, weight, numbers[vector], sums[row * vectors + vector]))
    for address, total in zip(outputs, results, strict=True):
        store(builder, total, address)


def _load_row(builder: Any, kind: int, row: Any, index: Any) -> Any:
    """Vector `index` of a row of numbers in order, as float32."""
    if kind == FLOAT32:
        return load(builder, VECTOR, offset(builder, row, LANES * 4, index))
    if kind == E4M3:
        return widen_e4m3(builder, load(builder, BYTE_VECTOR, offset(builder, row, LANES, index)))
    return widen_bfloat16(builder, load(builder, SHORT_VECTOR, offset(builder, row, LANES * 2, index)))
