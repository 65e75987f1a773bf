"""Atomic memory operations on int64 addresses and calls of C functions, for use inside compiled functions.

Owns the instructions only; the protocol built from them is `cpu_team`'s. All operations are sequentially consistent.
"""

import platform
from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils

from engines.native.kernels.cpu_compile import instruction

INT64 = ir.IntType(64)
_ORDER = "seq_cst"


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, INT64.as_pointer())


@instruction(types.int64(types.int64))
def atomic_load(builder: Any, address: Any) -> Any:
    return builder.load_atomic(_pointer(builder, address), _ORDER, 8, typ=INT64)


@instruction(types.void(types.int64, types.int64))
def atomic_store(builder: Any, address: Any, value: Any) -> None:
    builder.store_atomic(value, _pointer(builder, address), _ORDER, 8)


@instruction(types.int64(types.int64, types.int64))
def atomic_add(builder: Any, address: Any, value: Any) -> Any:
    """Add; gives the value before."""
    return builder.atomic_rmw("add", _pointer(builder, address), value, _ORDER)


@instruction(types.int64(types.int64, types.int64))
def atomic_exchange(builder: Any, address: Any, value: Any) -> Any:
    """Store; gives the value before."""
    return builder.atomic_rmw("xchg", _pointer(builder, address), value, _ORDER)


@instruction(types.boolean(types.int64, types.int64, types.int64))
def atomic_replace(builder: Any, address: Any, expected: Any, value: Any) -> Any:
    """Store value if the memory holds expected; True if it did."""
    return builder.extract_value(builder.cmpxchg(_pointer(builder, address), expected, value, _ORDER, _ORDER), 1)


@instruction(types.void())
def relax(builder: Any) -> None:
    """Tell the core that it is in a spin loop, where LLVM has an instruction for that."""
    if platform.machine() in ("x86_64", "AMD64"):
        kind = ir.FunctionType(ir.VoidType(), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])


@instruction(types.void(types.int64, types.int64))
def call_c(builder: Any, function: Any, argument: Any) -> None:
    """Call the C function at an address with one pointer-sized argument; its result is ignored."""
    kind = ir.FunctionType(ir.VoidType(), [INT64])
    builder.call(builder.inttoptr(function, kind.as_pointer()), [argument])


@instruction(types.void(types.int64, types.int64, types.int64))
def call_item(builder: Any, function: Any, item: Any, data: Any) -> None:
    """Call the C function at an address with an item's number and the address of its data."""
    kind = ir.FunctionType(ir.VoidType(), [INT64, INT64])
    builder.call(builder.inttoptr(function, kind.as_pointer()), [item, data])
