"""Kernels: numba on CPU, Triton on CUDA, and in `reference.py` the plain PyTorch twin of each.

`choose_kernels` is the table: device and settings to one `Ops` and the number formats it computes in. Implementations
are imported only when chosen, because numba and Triton bring seconds of import and compile time along.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch

from engines.errors import EngineUnavailable
from engines.native.kernels import flash_attention

if TYPE_CHECKING:
    from config.engines import NativeSettings
    from engines.native.kernels.ops import Ops
    from engines.native.models.model_config import ModelConfig
    from engines.native.quantization.weight import Quantizer

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


CompileAhead = Callable[[int], AbstractContextManager[None]]
"""Of a number of threads: inside, kernels are compiled side by side instead of run, and outputs are left unset."""


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """What computes, and in which formats."""

    ops: Ops
    attention_backend: str
    dtype: torch.dtype  # activations
    weight_dtype: torch.dtype  # matrices
    kv_dtype: torch.dtype
    block_size: int
    batch_sizes: tuple[int, ...] = ()  # one of each range of sizes that has kernels of its own, to warm up
    compile_ahead: CompileAhead | None = None
    quantization: str = ""  # of weights and KV cache, in words

    @property
    def dtype_name(self) -> str:
        names = {str(dtype).removeprefix("torch."): None for dtype in (self.weight_dtype, self.dtype)}
        return " weights, ".join(names) + (" arithmetic" if len(names) > 1 else "")


def choose_kernels(
    section: NativeSettings, config: ModelConfig, device: torch.device, quantizer: Quantizer | None = None
) -> KernelChoice:
    """Raises EngineUnavailable for a backend that this device or this installation does not have."""
    choice = _for_cuda(section, config) if device.type == "cuda" else _for_cpu(section)
    if section.batch_invariant:
        _check_batch_invariant(choice, device, quantizer)
    words: list[str] = []
    if quantizer is not None:
        choice, how = _quantized(choice)
        words.append(f"{quantizer.name} weights{how}")
    if section.kv_cache_dtype == "fp8":
        choice = replace(choice, kv_dtype=torch.float8_e4m3fn)
        words.append("KV cache fp8")
    return replace(choice, quantization=", ".join(words))


def _check_batch_invariant(choice: KernelChoice, device: torch.device, quantizer: Quantizer | None) -> None:
    if choice.attention_backend == "torch":
        raise EngineUnavailable(
            "batch_invariant is not to be had with attention_backend 'torch', whose products depend on the batch; "
            "numba has it on CPU, triton on GPU.",
            field="batch_invariant",
        )
    if quantizer is not None and device.type == "cuda":
        raise EngineUnavailable(
            f"batch_invariant is not to be had with quantize '{quantizer.name}' on GPU, whose kernels differ by batch "
            "size; leave one of them out.",
            field="batch_invariant",
        )


def _quantized(choice: KernelChoice) -> tuple[KernelChoice, str]:
    """The same operations over quantized weights, and what to tell of them."""
    from engines.native.kernels.quantized import QuantizedOps, ReferenceProduct, dequantized

    if choice.attention_backend == "torch":
        return replace(choice, ops=QuantizedOps(choice.ops, ReferenceProduct)), ", dequantized at every use"
    if choice.attention_backend in ("triton", "flash-attn"):
        from engines.native.kernels.triton_quantized import BATCH_SIZES, make_product

        batch_sizes = tuple(sorted({*choice.batch_sizes, *BATCH_SIZES}))
        return replace(choice, ops=QuantizedOps(choice.ops, make_product), batch_sizes=batch_sizes), ""
    ops = QuantizedOps(choice.ops, lambda weight: dequantized(choice.ops, weight, choice.weight_dtype))
    return replace(choice, ops=ops), ", dequantized at load: no kernel serves them here"


def _for_cpu(section: NativeSettings) -> KernelChoice:
    """numba computes in float32 whatever the weights' width; torch computes in the weights' own dtype."""
    backend = section.attention_backend
    if backend == "auto":
        backend = "numba" if section.dtype in ("auto", "float32") else "torch"
    if backend not in ("numba", "torch"):
        raise EngineUnavailable(f"attention_backend '{backend}' needs a CUDA GPU; on CPU there are numba and torch.")
    if backend == "torch":
        from engines.native.kernels import reference

        dtype = _DTYPES.get(section.dtype, torch.float32)
        return KernelChoice(cast("Ops", reference), "torch", dtype, dtype, dtype, section.block_size or 16)
    from engines.native.kernels.cpu_ops import BatchInvariantCPUOps, CPUOps

    weight_dtype = _DTYPES.get(section.dtype, torch.bfloat16)
    kv_dtype = torch.float32 if section.dtype == "float32" else torch.bfloat16
    ops = BatchInvariantCPUOps() if section.batch_invariant else CPUOps()
    return KernelChoice(ops, "numba", torch.float32, weight_dtype, kv_dtype, section.block_size or 16)


def _for_cuda(section: NativeSettings, config: ModelConfig) -> KernelChoice:
    own = _DTYPES[config.dtype]
    dtype = _DTYPES.get(section.dtype, torch.bfloat16 if own is torch.float32 else own)
    backend = "triton" if section.attention_backend == "auto" else section.attention_backend
    if backend == "torch":
        from engines.native.kernels import reference

        return KernelChoice(cast("Ops", reference), "torch", dtype, dtype, dtype, section.block_size or 16)
    if backend not in ("triton", "flash-attn") or importlib.util.find_spec("triton") is None:
        raise EngineUnavailable(f"attention_backend '{backend}' is not available here; pass triton or torch.")
    flash = _use_flash(section, dtype, config.head_dim)
    from engines.native.kernels.triton_kernel import compile_ahead
    from engines.native.kernels.triton_ops import TritonOps, batch_sizes

    if section.batch_invariant:
        from engines.native.kernels.triton_invariant_ops import BatchInvariantOps

        return KernelChoice(
            BatchInvariantOps(), "triton", dtype, dtype, dtype, section.block_size or 64, compile_ahead=compile_ahead
        )
    name, block_size = ("flash-attn", flash_attention.BLOCK_SIZE) if flash else ("triton", 64)
    kv_heads = max(1, config.num_kv_heads // section.tensor_parallel_size)
    return KernelChoice(
        TritonOps(flash=flash), name, dtype, dtype, dtype, section.block_size or block_size,
        batch_sizes(kv_heads), compile_ahead,
    )  # fmt: skip


def _use_flash(section: NativeSettings, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether flash-attn computes prompts, and Triton everything else: where somebody asks for it. It is faster, but
    importing and compiling it makes a start twice as long."""
    if section.attention_backend != "flash-attn":
        return False
    if section.kv_cache_dtype == "fp8":
        raise EngineUnavailable("attention_backend 'flash-attn' reads no fp8 KV cache on Hopper; pass triton.")
    if not flash_attention.is_available(dtype, head_dim):
        raise EngineUnavailable(
            "attention_backend 'flash-attn' needs the package flash-attn-4 (pip install 'headrace[flash-attn]'), a "
            "Hopper GPU or newer, a 16-bit dtype and heads of at most 256 elements, a multiple of 8 (here "
            f"{dtype} and {head_dim}); pass triton."
        )
    return True
