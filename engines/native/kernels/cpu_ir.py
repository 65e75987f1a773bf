"""Pieces of LLVM code that the CPU's vector instructions are written with.

Owns the width of vectors and the helpers that take a builder and LLVM values and give LLVM values. Nothing here is
called inside kernels; `cpu_vector` and `cpu_tiles` make instructions of it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llvmlite.ir as ir
from numba.core import cgutils
from numba.core.registry import cpu_target

# Of the processor that numba compiles for, usually this one.
_, _PROCESSOR, _FEATURES = cpu_target.target_context.codegen().magic_tuple()  # type: ignore[attr-defined]

# Float32 numbers in a vector: one register with AVX-512 and AVX2, two with NEON.
LANES = 16 if "+avx512f" in _FEATURES else 8

# Whether products of bfloat16 pairs run at twice the rate of float32 ones: measured so on AMD's processors with
# AVX512-BF16, while Intel's without AMX take as long for them as for float32.
HAS_FAST_BFLOAT16 = "+avx512bf16" in _FEATURES and _PROCESSOR.startswith("znver")

INT8, INT16, INT32, INT64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
FLOAT = ir.FloatType()
VECTOR = ir.VectorType(FLOAT, LANES)
INT_VECTOR = ir.VectorType(INT32, LANES)
HALF_VECTOR = ir.VectorType(ir.HalfType(), LANES)
SHORT_VECTOR = ir.VectorType(INT16, LANES)
BYTE_VECTOR = ir.VectorType(INT8, LANES)

ZEROS = ir.Constant(VECTOR, [ir.Constant(FLOAT, 0.0)] * LANES)


def spread_int(value: int) -> ir.Constant:
    """A vector of LANES times the same 32-bit integer."""
    return ir.Constant(INT_VECTOR, [ir.Constant(INT32, value)] * LANES)


def call_llvm(builder: Any, name: str, result: Any, arguments: Sequence[Any], fastmath: tuple[str, ...] = ()) -> Any:
    """Call one of LLVM's own functions."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, arguments, fastmath=fastmath)


def offset(builder: Any, base: Any, stride: Any, index: Any) -> Any:
    """base + stride * index, int64; either factor may be a Python number."""
    factors = [ir.Constant(INT64, factor) if isinstance(factor, int) else factor for factor in (stride, index)]
    return builder.add(base, builder.mul(*factors))


def load(builder: Any, kind: Any, address: Any) -> Any:
    """A number or vector of the LLVM type at an address, which need only be aligned to 2 bytes."""
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=2)


def store(builder: Any, value: Any, address: Any) -> None:
    """Write a number or vector of 32-bit lanes to an address aligned to 4 bytes."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=4)


def widen_bfloat16(builder: Any, shorts: Any) -> Any:
    """LANES bfloat16 numbers, as 16-bit integers, to float32."""
    return builder.bitcast(builder.shl(builder.zext(shorts, INT_VECTOR), spread_int(16)), VECTOR)


def widen_e4m3(builder: Any, codes: Any) -> Any:
    """LANES e4m3 numbers, as bytes, to float32: exponent and mantissa moved, and the biases' difference multiplied in.

    Subnormal numbers come out right, since float32's are of the same make.
    """
    bits = builder.zext(codes, INT_VECTOR)
    sign = builder.shl(builder.and_(bits, spread_int(0x80)), spread_int(24))
    magnitude = builder.shl(builder.and_(bits, spread_int(0x7F)), spread_int(20))
    scale = ir.Constant(VECTOR, [ir.Constant(FLOAT, 2.0**120)] * LANES)
    return builder.fmul(builder.bitcast(builder.or_(sign, magnitude), VECTOR), scale)


def broadcast(builder: Any, number: Any) -> Any:
    """A vector of LANES times the same 32-bit number."""
    undefined = ir.Constant(ir.VectorType(number.type, LANES), ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(INT32, 0))
    return builder.shuffle_vector(first, undefined, spread_int(0))


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c on vectors, in one instruction where the processor has it."""
    return call_llvm(builder, f"llvm.fmuladd.v{LANES}f32", VECTOR, [a, b, c])


def multiply_pairs_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """c + a[2l] * b[2l] + a[2l + 1] * b[2l + 1] in lane l: pairs of bfloat16 in 32-bit lanes, sums float32.

    For processors with AVX512-BF16 only.
    """
    return call_llvm(builder, "llvm.x86.avx512bf16.dpbf16ps.512", VECTOR, [c, a, b])


@contextmanager
def loop(builder: Any, count: Any, initial: Sequence[Any]) -> Iterator[tuple[Any, list[Any], list[Any]]]:
    """A loop over range(count) that carries values: gives (index, values, list to fill with the following values).

    After the block the list holds the final values, `initial` if count is 0.
    """
    results: list[Any] = []
    entry = builder.block
    head, body, done = (builder.append_basic_block(name) for name in ("head", "body", "done"))
    builder.branch(head)
    builder.position_at_end(head)
    phis = [builder.phi(value.type) for value in [count, *initial]]
    for phi, value in zip(phis, [ir.Constant(INT64, 0), *initial], strict=True):
        phi.add_incoming(value, entry)
    builder.cbranch(builder.icmp_signed("<", phis[0], count), body, done)
    builder.position_at_end(body)
    yield phis[0], phis[1:], results
    following = [builder.add(phis[0], ir.Constant(INT64, 1)), *results]
    for phi, value in zip(phis, following, strict=True):
        phi.add_incoming(value, builder.block)
    builder.branch(head)
    builder.position_at_end(done)
    results[:] = phis[1:]
