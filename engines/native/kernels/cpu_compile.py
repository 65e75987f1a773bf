"""Compiling CPU kernels: once per machine, stored, and called with numbers only.

Owns the decorators that every CPU kernel is made with. It does not know what any kernel computes, nor about threads.

Numba stores compiled kernels in `__pycache__` beside this file, in the user's cache directory where that is not
writable, or in the directory that NUMBA_CACHE_DIR names. It checks only the file that defines a kernel, so `kernel`
adds a fingerprint of all CPU kernel sources to the entry's name: when a helper in another file changes, its kernels are
compiled anew.
"""

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from numba import njit
from numba.core.errors import TypingError
from numba.extending import intrinsic
from torch import Tensor

# Sums may be reordered and contracted; NaN does not occur in a healthy model; infinities keep their meaning.
_FAST_MATH = {"reassoc", "contract", "nsz", "arcp", "nnan"}

_SOURCES = sorted(Path(__file__).parent.glob("cpu_*.py"))
_FINGERPRINT = hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()[:12]


def kernel(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function for its numba signature on import, or load it from the cache; a call releases the GIL.

    Arguments are numbers: passing a tensor's address costs a tenth of passing it as an array.
    """

    def compile_kernel(function: Callable[..., Any]) -> Any:
        function.__qualname__ += "_" + _FINGERPRINT
        return njit(signature, nogil=True, cache=True, error_model="numpy", fastmath=_FAST_MATH)(function)

    return compile_kernel


def helper(function: Callable[..., Any]) -> Any:
    """A function for kernels to call: compiled into them, never called from Python."""
    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return njit(function, error_model="numpy", fastmath=_FAST_MATH, **options)


def instruction(signature: Any, constants: int = 0) -> Callable[[Callable[..., Any]], Any]:
    """A function for kernels to call whose body writes LLVM instructions: called with a builder and LLVM values.

    `signature` is numba's, of all arguments but the first `constants`, which must be literal numbers in the kernel and
    reach the function as Python numbers. A function that returns nothing is of type void.
    """

    def make_instruction(function: Callable[..., Any]) -> Any:
        def find_type(_typing_context: Any, *arguments: Any) -> Any:
            literals = [getattr(argument, "literal_value", None) for argument in arguments[:constants]]
            if None in literals:
                raise TypingError(f"the first {constants} arguments of {function.__name__} must be constants")

            def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
                result = function(builder, *literals, *values[constants:])
                return context.get_dummy_value() if result is None else result

            return signature.return_type(*arguments[:constants], *signature.args), generate

        find_type.__name__, find_type.__doc__ = function.__name__, function.__doc__
        find_type.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]  # numba binds calls to it
        return intrinsic(prefer_literal=constants > 0)(find_type)

    return make_instruction


def plain(dtype: torch.dtype, *tensors: Tensor) -> bool:
    """True if kernels can read the tensors by their addresses: of this dtype and contiguous."""
    return all(tensor.dtype == dtype and tensor.is_contiguous() for tensor in tensors)
