"""How a Triton kernel is compiled and launched: once for every kind of argument, and cheaply from then on.

Triton derives from each argument what the compiled code may assume (this integer is 1, or a multiple of 16; this
pointer is aligned to 16 bytes) and compiles again whenever that changes, which stalls a serving process for a second.
`kernel` names the parameters that change from batch to batch; nothing is assumed of those. The others follow from the
model, so a kernel is compiled once for its compile-time values, at start-up, and many of them side by side inside
`compile_ahead`.

Finding the compiled kernel costs Triton 10 to 20 us a launch, more than a small kernel runs. Here it is found by a
short key, and pointers are handed over as numbers, which skips a question to the driver for each.

It knows nothing of what kernels compute. One device a process.
"""

# The module may be absent where there is no GPU.
# pyright: reportMissingImports=false

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
import triton
from torch import Tensor

_POINTER_ALIGNMENT = 16  # bytes; what Triton assumes where it can, for wide loads


class Kernel:
    """`kernel(grid, *arguments, num_warps=4, pdl=False, **compile_time)` launches; made by the decorator below."""

    _submitted: set[Any] | None = None  # while compiling ahead, for all kernels: what has been submitted

    def __init__(self, function: Callable[..., None], varying: Sequence[str]) -> None:
        self._jitted = triton.jit(function, do_not_specialize=list(varying))  # pyright: ignore[reportCallIssue]
        parameters = list(inspect.signature(function).parameters.values())
        self._compile_time = [p.name for p in parameters if "constexpr" in str(p.annotation)]
        passed = [p.name for p in parameters[: -len(self._compile_time)]]
        assert set(varying) <= set(passed)
        assert not set(passed) & set(self._compile_time)
        self._varies = [name in varying for name in passed]
        self._compiled: dict[Any, Any] = {}

    def __call__(
        self,
        grid: tuple[int, ...],
        *arguments: Tensor | float,
        num_warps: int,
        num_stages: int = 3,
        pdl: bool = False,
        **compile_time: Any,
    ) -> None:
        """Launch on the current stream. compile_time: the tl.constexpr parameters by name, but for PDL, which is `pdl`:
        whether to launch while the predecessor drains."""
        compile_time["PDL"] = pdl
        values = [compile_time[name] for name in self._compile_time]
        passed: list[float] = []
        assumed: list[object] = [num_warps, num_stages]
        addresses = 0
        for argument, varies in zip(arguments, self._varies, strict=True):
            if isinstance(argument, Tensor):
                address = argument.data_ptr()
                passed.append(address)
                assumed.append(argument.dtype)
                addresses |= 0 if varies else address
            else:
                passed.append(argument)
                assumed.append(type(argument) if varies else argument)
        key = (*assumed, *values)
        compiled = self._compiled.get(key)
        is_aligned = addresses % _POINTER_ALIGNMENT == 0
        if compiled is not None and is_aligned and Kernel._submitted is None:
            compiled[(*grid, 1, 1)[:3]](*passed, *values)
            return
        options = {"num_warps": num_warps, "num_stages": num_stages, "launch_pdl": pdl, **compile_time}
        if Kernel._submitted is None:
            compiled = self._jitted[grid](*arguments, **options)
            if compiled is not None and is_aligned:  # the interpreter has none to return
                self._compiled[key] = compiled
        elif (self, key) not in Kernel._submitted:
            Kernel._submitted.add((self, key))
            self._jitted.warmup(*arguments, grid=grid, **options)


def kernel(varying: Sequence[str] = ()) -> Callable[[Callable[..., None]], Kernel]:
    """Like triton.jit, for kernels that take pointers and numbers first, then constexprs, of which PDL is the last.

    varying: integers, and pointers read an element at a time, that differ from step to step.
    """
    return lambda function: Kernel(function, varying)


def is_compiling_ahead() -> bool:
    """Whether kernels leave their outputs unset: whoever uses such an output as an index clears it then."""
    return Kernel._submitted is not None


@contextmanager
def compile_ahead(num_threads: int) -> Iterator[None]:
    """Inside, kernels are submitted for compiling instead of launched (outputs stay unset); leaving waits for all.

    Most of the work is outside Python's lock, so threads help. Loading what was compiled, which builds a small launcher
    with the C compiler the first time on a machine, is done here as well.
    """
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    initializer = None if device is None else lambda: torch.cuda.set_device(device)
    with ThreadPoolExecutor(num_threads, initializer=initializer) as pool:
        Kernel._submitted = set()
        try:
            with triton.AsyncCompileMode(pool) as mode:
                yield
        finally:
            Kernel._submitted = None
        list(pool.map(_load, [future.result() for future in mode.future_kernels.values()]))


def _load(compiled: Any) -> None:
    """Indexing by a grid prepares a launch, without launching."""
    compiled[1, 1, 1]
