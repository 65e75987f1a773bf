"""Checkpoints that are quantized already, as a source of weights: recognised by their own `quantization_config`.

Owns which tensors of a file belong to one linear layer, and what the rest of the loader sees of them: one matrix under
the name that it has in a plain checkpoint. How a method's tensors become a QuantizedWeight is the method's own file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from torch import Tensor

from engines.errors import EngineUnavailable
from engines.native.layers.index import Index
from engines.native.quantization.weight import QuantizedWeight
from engines.native.weights.safetensors import SafetensorsSource
from engines.native.weights.source import TensorInfo

Parts = Mapping[str, Tensor]
"""A linear layer's tensors, by what follows its name."""


Read = Callable[[str], Tensor]
"""One of them, read from the file."""


class Method(NamedTuple):
    """How one kind of checkpoint keeps a linear layer."""

    name: str
    required: frozenset[str]  # a layer that has all of these is quantized
    others: frozenset[str]  # may stand beside them
    convert: Callable[[Parts], QuantizedWeight | Tensor]  # a plain matrix where no kernel could serve the layer
    shape: Callable[[Mapping[str, tuple[int, ...]], Read], tuple[int, int]]  # of the matrix, from those of the parts


_IGNORED = ("k_scale", "v_scale", "q_scale", "input_scale", "output_scale", "input_zero_point")
"""Scales of activations and of the KV cache: ours are dynamic, or 1."""


class CheckpointSource:
    """See WeightSource."""

    def __init__(self, files: SafetensorsSource, method: Method) -> None:
        self._files = files
        self._method = method
        self._layers = _layers(files.tensors, method)
        inside = {f"{layer}.{suffix}" for layer, suffixes in self._layers.items() for suffix in suffixes}
        self.tensors = {
            name: info
            for name, info in files.tensors.items()
            if name not in inside and name.rpartition(".")[2] not in _IGNORED
        }
        for layer, suffixes in self._layers.items():
            infos = {suffix: files.tensors[f"{layer}.{suffix}"] for suffix in suffixes}
            read = functools.partial(self._part, layer)
            shape = method.shape({suffix: info.shape for suffix, info in infos.items()}, read)
            self.tensors[f"{layer}.weight"] = TensorInfo(shape, sum(info.stored_bytes for info in infos.values()))

    def read(self, name: str, index: Index, target: Tensor) -> None:
        if name.removesuffix(".weight") not in self._layers:
            self._files.read(name, index, target)
            return
        weight = self._convert(name)
        plain = weight if isinstance(weight, Tensor) else weight.dequantize()
        target.copy_(plain[index])

    def read_quantized(self, name: str, index: Index) -> QuantizedWeight | None:
        if name.removesuffix(".weight") not in self._layers:
            return None
        weight = self._convert(name)
        return weight.part(index[0], index[1]) if isinstance(weight, QuantizedWeight) else None

    def _part(self, layer: str, suffix: str) -> Tensor:
        return self._files.tensor(f"{layer}.{suffix}")

    def _convert(self, name: str) -> QuantizedWeight | Tensor:
        layer = name.removesuffix(".weight")
        parts = {suffix: self._part(layer, suffix) for suffix in self._layers[layer]}
        try:
            return self._method.convert(parts)
        except (KeyError, RuntimeError, ValueError) as error:
            raise EngineUnavailable(
                f"{layer}: its {self._method.name} tensors do not fit together: {error}.", field="model"
            ) from error


def _layers(tensors: Mapping[str, TensorInfo], method: Method) -> dict[str, list[str]]:
    """Names of quantized layers, and the suffixes of their tensors."""
    known = sorted(method.required | method.others, key=len, reverse=True)
    found: dict[str, list[str]] = {}
    for name in tensors:
        for suffix in known:
            if name.endswith(f".{suffix}"):
                found.setdefault(name[: -len(suffix) - 1], []).append(suffix)
                break
    return {layer: suffixes for layer, suffixes in found.items() if method.required <= set(suffixes)}


def method_of(config: Mapping[str, Any]) -> Method:
    """From a `quantization_config`. Raises EngineUnavailable naming the method or setting that is not supported."""
    from engines.native.quantization import awq, bitsandbytes_checkpoint, compressed_tensors, fp8_checkpoint, gptq

    name = str(config.get("quant_method", ""))
    methods: Mapping[str, Callable[[Mapping[str, Any]], Method]] = {
        "gptq": gptq.method,
        "awq": awq.method,
        "compressed-tensors": compressed_tensors.method,
        "fp8": fp8_checkpoint.method,
        "bitsandbytes": bitsandbytes_checkpoint.method,
    }
    if name not in methods:
        refuse(f"quant_method '{name}' is not supported; these are: {', '.join(methods)}")
    return methods[name](config)


def refuse(problem: str) -> NoReturn:
    """Raises EngineUnavailable about the checkpoint's quantization_config."""
    raise EngineUnavailable(
        f"The checkpoint's quantization_config cannot be used: {problem}.", field="quantization_config"
    )
