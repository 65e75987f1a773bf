"""A folder of safetensors files as a source of weights: memory-mapped, each tensor read once, only the part needed.

Owns which files of a folder count. Knows nothing of what the tensors mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from engines.errors import EngineUnavailable
from engines.native.layers.index import Index
from engines.native.weights.source import TensorInfo

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_QUANTIZED_ITEM_BYTES = {**_ITEM_BYTES, "F8_E4M3": 1, "I8": 1, "U8": 1, "I32": 4, "I64": 8}


class SafetensorsSource:
    """See WeightSource. Raises EngineUnavailable naming the file that is missing, damaged or of another kind."""

    def __init__(self, folder: Path, *, quantized: bool = False) -> None:
        self.tensors: dict[str, TensorInfo] = {}
        self._files: dict[str, Any] = {}  # tensor name -> open file
        for path in _files(folder):
            try:
                file = safe_open(path, framework="pt", device="cpu")
            except (OSError, SafetensorError) as error:
                raise EngineUnavailable(f"{path.name} cannot be read: {error}.", field="model") from error
            for name in file.offset_keys():  # in the order of the data, so that disks read forwards
                self.tensors[name] = _describe(file, name, path, _QUANTIZED_ITEM_BYTES if quantized else _ITEM_BYTES)
                self._files[name] = file

    def read(self, name: str, index: Index, target: Tensor) -> None:
        whole = all(part == slice(0, size) for part, size in zip(index, self.tensors[name].shape, strict=True))
        file = self._files[name]
        target.copy_(file.get_tensor(name) if whole else file.get_slice(name)[index])

    def tensor(self, name: str) -> Tensor:
        """A tensor as it is stored."""
        return self._files[name].get_tensor(name)

    def read_quantized(self, name: str, index: Index) -> None:
        """Nothing is quantized here."""


def _files(folder: Path) -> list[Path]:
    """The index's files, else the single file, else every safetensors file."""
    if (folder / _INDEX).is_file():
        weight_map: dict[str, str] = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
        files = [folder / name for name in sorted(set(weight_map.values()))]
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise EngineUnavailable(f"{_INDEX} names files that are missing: {', '.join(missing)}.", field="model")
        return files
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        found = "only pickled weights (.bin, .pt), which can run code when read" if pickled else "no weights"
        raise EngineUnavailable(
            f"The model's folder holds {found}; a safetensors file is needed (or --load-format dummy).", field="model"
        )
    return files


def _describe(file: Any, name: str, path: Path, sizes: Mapping[str, int]) -> TensorInfo:
    entry = file.get_slice(name)
    item_bytes = sizes.get(entry.get_dtype())
    if item_bytes is None:
        kinds = ", ".join(sizes)
        raise EngineUnavailable(
            f"{path.name}: tensor {name} has type {entry.get_dtype()}; these are supported: {kinds}.", field="model"
        )
    shape = tuple(entry.get_shape())
    return TensorInfo(shape, math.prod(shape) * item_bytes)
