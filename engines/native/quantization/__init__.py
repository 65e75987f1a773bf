"""Quantization: one file per scheme. `choose_quantizer` is the table from a setting to a scheme.

weight.py has the value that all share; pending.py the moment of quantization. Kernels are under kernels/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from engines.errors import EngineUnavailable

if TYPE_CHECKING:
    from config.engines import NativeSettings
    from engines.native.quantization.weight import Quantizer

_DEFAULT_GROUPS = {"int4": 32, "nf4": 64, "fp4": 64}  # int4 needs 32 for its aim; 64 is the library's own


def choose_quantizer(
    section: NativeSettings, checkpoint: Mapping[str, Any] | None = None, *, keeps_gguf: bool = False
) -> Quantizer | None:
    """The scheme of `quantize`, or that of a checkpoint's own quantization_config, or None.

    keeps_gguf: the checkpoint is a GGUF file, and kernels here serve its blocks. A file without `quantize` then stays
    as it is; with it, what the file stands for is quantized anew. Raises EngineUnavailable for two schemes at once, and
    for a group size that the scheme cannot have.
    """
    name, group_size = section.quantize, section.quantize_group_size
    if checkpoint is not None:
        own = str(checkpoint.get("quant_method", "unnamed"))
        if name != "none":
            raise EngineUnavailable(
                f"quantize is '{name}', but the checkpoint is quantized already ({own}); leave quantize out.",
                field="quantize",
            )
        from engines.native.quantization.weight import AsStored

        return AsStored(own)
    if keeps_gguf and name == "none" and group_size is None:
        from engines.native.quantization.weight import AsStored

        return AsStored("GGUF's own (Q4_0, Q4_1, Q4_K, Q6_K, Q8_0)")
    if group_size is not None and name not in ("int4", "nf4", "fp4"):
        problem = "nothing is quantized" if name == "none" else "a scale is for a whole channel"
        raise EngineUnavailable(
            f"quantize_group_size is for int4, nf4 and fp4; with quantize '{name}' {problem}.",
            field="quantize_group_size",
        )
    return _SCHEMES[name](group_size or _DEFAULT_GROUPS.get(name, 0)) if name != "none" else None


def _fp8(_group_size: int) -> Quantizer:
    from engines.native.quantization.fp8 import Fp8Quantizer

    return Fp8Quantizer()


def _int8(_group_size: int) -> Quantizer:
    from engines.native.quantization.int8 import Int8Quantizer

    return Int8Quantizer()


def _int4(group_size: int) -> Quantizer:
    from engines.native.quantization.int4 import CHUNK, Int4Quantizer

    if group_size % CHUNK:
        raise EngineUnavailable(
            f"quantize_group_size is {group_size}; int4 takes multiples of {CHUNK}.", field="quantize_group_size"
        )
    return Int4Quantizer(group_size)


def _nf4(group_size: int) -> Quantizer:
    return _bitsandbytes("nf4", group_size)


def _fp4(group_size: int) -> Quantizer:
    return _bitsandbytes("fp4", group_size)


def _bitsandbytes(name: Literal["nf4", "fp4"], group_size: int) -> Quantizer:
    from engines.native.quantization.bitsandbytes import GROUP_SIZES, BitsAndBytesQuantizer

    if group_size not in GROUP_SIZES:
        raise EngineUnavailable(
            f"quantize_group_size is {group_size}; {name} takes one of {', '.join(map(str, GROUP_SIZES))}.",
            field="quantize_group_size",
        )
    return BitsAndBytesQuantizer(name, group_size)


_SCHEMES: Mapping[str, Callable[[int], Quantizer]] = {
    "fp8": _fp8,
    "int8": _int8,
    "int4": _int4,
    "nf4": _nf4,
    "fp4": _fp4,
}
