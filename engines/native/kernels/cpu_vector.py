"""Small instructions for CPU kernels: pointers for arrays over raw addresses, bfloat16, an exponential, a maximum.

Owns what loops need per number or per row; the products are `cpu_tiles`'. For use inside compiled functions only.
"""

from typing import Any

import llvmlite.ir as ir
import numpy as np
from numba import types
from numba.extending import intrinsic

from engines.native.kernels.cpu_compile import instruction
from engines.native.kernels.cpu_ir import FLOAT, INT8, INT16, INT32, INT64, LANES, VECTOR, call_llvm, load, loop, offset

LOWEST = np.float32(-3.0e38)  # the score of what is not seen; finite, so that differences stay numbers


@instruction(types.CPointer(types.float32)(types.int64))
def float32_pointer(builder: Any, address: Any) -> Any:
    """What `carray` takes for an array of float32 at an address."""
    return builder.inttoptr(address, FLOAT.as_pointer())


@instruction(types.CPointer(types.uint16)(types.int64))
def uint16_pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, INT16.as_pointer())


@instruction(types.CPointer(types.uint8)(types.int64))
def uint8_pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, INT8.as_pointer())


@instruction(types.CPointer(types.int32)(types.int64))
def int32_pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, INT32.as_pointer())


@instruction(types.CPointer(types.int64)(types.int64))
def int64_pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, INT64.as_pointer())


@intrinsic
def _keep_alive(_typing_context: Any, array: Any) -> Any:
    def generate(context: Any, _builder: Any, _signature: Any, _values: Any) -> Any:
        return context.get_dummy_value()

    return types.void(array), generate


# Numba frees an array after its last use; an address taken from it is none. Call this after the address's last use.
keep_alive: Any = _keep_alive


@instruction(types.float32(types.uint16))
def from_bfloat16(builder: Any, bits: Any) -> Any:
    """The float32 that 16 bits of a bfloat16 stand for."""
    return builder.bitcast(builder.shl(builder.zext(bits, INT32), ir.Constant(INT32, 16)), FLOAT)


@instruction(types.uint16(types.float32))
def to_bfloat16(builder: Any, number: Any) -> Any:
    """A float32 rounded to the nearest bfloat16, ties to even, as 16 bits."""
    bits = builder.bitcast(number, INT32)
    odd = builder.and_(builder.lshr(bits, ir.Constant(INT32, 16)), ir.Constant(INT32, 1))
    rounded = builder.add(builder.add(bits, ir.Constant(INT32, 0x7FFF)), odd)
    return builder.trunc(builder.lshr(rounded, ir.Constant(INT32, 16)), INT16)


@instruction(types.float32(types.uint8))
def from_e4m3(builder: Any, bits: Any) -> Any:
    """The float32 that a byte of e4m3 stands for; see cpu_ir.widen_e4m3."""
    wide = builder.zext(bits, INT32)
    sign = builder.shl(builder.and_(wide, ir.Constant(INT32, 0x80)), ir.Constant(INT32, 24))
    magnitude = builder.shl(builder.and_(wide, ir.Constant(INT32, 0x7F)), ir.Constant(INT32, 20))
    return builder.fmul(builder.bitcast(builder.or_(sign, magnitude), FLOAT), ir.Constant(FLOAT, 2.0**120))


@instruction(types.uint8(types.float32))
def to_e4m3(builder: Any, number: Any) -> Any:
    """A float32 rounded to the nearest e4m3, ties to even, as a byte; beyond the largest it is the largest, 448.

    From 2**-6 on, rounding is on the bits; below, numbers are multiples of 2**-9.
    """
    bits = builder.bitcast(number, INT32)
    sign = builder.and_(builder.lshr(bits, ir.Constant(INT32, 24)), ir.Constant(INT32, 0x80))
    size = builder.bitcast(builder.and_(bits, ir.Constant(INT32, 0x7FFFFFFF)), FLOAT)
    size = builder.select(builder.fcmp_ordered("<", size, ir.Constant(FLOAT, 448.0)), size, ir.Constant(FLOAT, 448.0))
    bits = builder.bitcast(size, INT32)
    odd = builder.and_(builder.lshr(bits, ir.Constant(INT32, 20)), ir.Constant(INT32, 1))
    rounded = builder.add(builder.add(bits, ir.Constant(INT32, 0x7FFFF)), odd)
    normal = builder.sub(builder.lshr(rounded, ir.Constant(INT32, 20)), ir.Constant(INT32, 120 << 3))
    steps = call_llvm(builder, "llvm.rint.f32", FLOAT, [builder.fmul(size, ir.Constant(FLOAT, 512.0))])
    is_small = builder.fcmp_ordered("<", size, ir.Constant(FLOAT, 2.0**-6))
    code = builder.select(is_small, builder.fptosi(steps, INT32), normal)
    return builder.trunc(builder.or_(code, sign), INT8)


@instruction(types.float32(types.float32))
def exp(builder: Any, x: Any) -> Any:
    """e ** x within 2 units in the last place, x clamped to [-87, 88]; loops over it vectorize.

    2 ** n * e ** r with n = round(x / ln 2), |r| <= ln(2) / 2, and e ** r by the minimax polynomial of Cephes' expf.c.
    """

    def constant(value: float) -> ir.Constant:
        return ir.Constant(FLOAT, value)

    def multiply_add(a: Any, b: Any, c: Any) -> Any:
        return call_llvm(builder, "llvm.fmuladd.f32", FLOAT, [a, b, c])

    low, high = constant(-87.0), constant(88.0)
    clamped = builder.select(builder.fcmp_ordered(">", x, low), x, low)
    clamped = builder.select(builder.fcmp_ordered("<", clamped, high), clamped, high)
    n = call_llvm(builder, "llvm.rint.f32", FLOAT, [builder.fmul(clamped, constant(1.44269502162933349609375))])
    # ln 2 in two parts, the first with few bits, so that n times it is exact
    r = multiply_add(n, constant(-0.693359375), clamped)
    r = multiply_add(n, constant(2.12194440e-4), r)
    polynomial = constant(1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        polynomial = multiply_add(polynomial, r, constant(coefficient))
    mantissa = multiply_add(polynomial, builder.fmul(r, r), builder.fadd(r, constant(1.0)))
    exponent = builder.add(builder.fptosi(n, INT32), ir.Constant(INT32, 127))
    return builder.fmul(mantissa, builder.bitcast(builder.shl(exponent, ir.Constant(INT32, 23)), FLOAT))


@instruction(types.void(types.int64))
def prefetch(builder: Any, address: Any) -> None:
    """Ask for the cache line at an address, mapped or not."""
    pointer = builder.inttoptr(address, ir.IntType(8).as_pointer())
    read, keep, data = (ir.Constant(INT32, value) for value in (0, 3, 1))
    call_llvm(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, read, keep, data])


@instruction(types.float32(types.int64, types.int64))
def row_max(builder: Any, x: Any, vectors: Any) -> Any:
    """The greatest of LANES * vectors float32 numbers at an address; vectors >= 1."""
    with loop(builder, vectors, [load(builder, VECTOR, x)]) as (index, highest, results):
        numbers = load(builder, VECTOR, offset(builder, x, LANES * 4, index))
        results.append(builder.select(builder.fcmp_ordered(">", numbers, highest[0]), numbers, highest[0]))
    return call_llvm(builder, f"llvm.vector.reduce.fmax.v{LANES}f32", FLOAT, results, ("nnan",))
