"""A GGUF file as a source of weights: memory-mapped, dequantized on the way to its place.

Owns the names that the format gives to tensors, and the order of q's and k's rows in files that rotate adjacent pairs.
Quantized bytes are permuted and sliced before they are dequantized, which is the cheap moment.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from engines.errors import EngineUnavailable
from engines.native.gguf_metadata import GGUFError, GGUFTensor, read_gguf_header
from engines.native.layers.index import Index
from engines.native.models.gguf_config import gguf_family
from engines.native.models.model_config import ModelConfig
from engines.native.quantization.gguf import from_rows
from engines.native.quantization.weight import QuantizedWeight
from engines.native.weights.gguf_dequantize import StorageType, dequantize_columns, dequantize_rows, storage_type
from engines.native.weights.source import TensorInfo

_OUTER_NAMES: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "post_attention_norm": "post_attention_layernorm",  # so called where an architecture was added late
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FUSED_NAMES: Mapping[str, str] = {**_LAYER_NAMES, "ffn_up": "mlp.gate_up_proj"}
_IN_CONFIGURATION = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


class GGUFSource:
    """See WeightSource. Raises EngineUnavailable naming the tensor that is cut off or of an unknown type."""

    def __init__(self, path: Path, config: ModelConfig) -> None:
        try:
            header = read_gguf_header(path)
        except (OSError, GGUFError) as error:
            raise EngineUnavailable(f"The model's GGUF file cannot be read: {error}.", field="model") from error
        family = gguf_family(header.metadata)
        with open(path, "rb") as file:  # a private mapping: torch wants writable memory, nobody writes
            self._bytes = torch.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=torch.uint8)
        self._entries: dict[str, _Entry] = {}
        for stored_name, tensor in header.tensors.items():
            if stored_name not in _IN_CONFIGURATION:
                name = _checkpoint_name(stored_name, family.fused_checkpoint)
                self._entries[name] = _entry(stored_name, tensor, len(self._bytes))
        self.tensors = {
            name: TensorInfo(entry.tensor.shape, entry.rows * entry.row_bytes) for name, entry in self._entries.items()
        }
        heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
        self._interleaved_heads = heads if family.interleaved_rope else {}

    def read(self, name: str, index: Index, target: Tensor) -> None:
        entry = self._entries[name]
        data = self._rows(name, entry)[index[0]]
        target = target if target.dim() == 2 else target.unsqueeze(1)
        if len(index) == 1 or index[1] == slice(0, entry.columns):
            dequantize_rows(data, entry.storage, target)
        else:
            dequantize_columns(data, entry.storage, index[1], target)

    def read_quantized(self, name: str, index: Index) -> QuantizedWeight | None:
        entry = self._entries[name]
        weight = from_rows(self._rows(name, entry)[index[0]], entry.storage)
        return None if weight is None else weight.part(slice(None), index[1])

    def _rows(self, name: str, entry: _Entry) -> Tensor:
        """[rows, row_bytes] uint8, in the order that the layers' rotation wants."""
        offset = entry.tensor.offset
        data = self._bytes[offset : offset + entry.rows * entry.row_bytes].view(entry.rows, entry.row_bytes)
        heads = self._interleaved_heads.get(name.split(".")[-2])
        if heads is not None:  # rows 0, 1, 2, ... of a head are dimensions 0, D/2, 1, D/2 + 1, ...
            data = data.view(heads, -1, 2, entry.row_bytes).transpose(1, 2).reshape(entry.rows, entry.row_bytes)
        return data


class _Entry(NamedTuple):
    """One tensor as a matrix; vectors have one column."""

    tensor: GGUFTensor
    storage: StorageType
    rows: int
    columns: int
    row_bytes: int


def _entry(name: str, tensor: GGUFTensor, file_bytes: int) -> _Entry:
    try:
        storage = storage_type(tensor.type_id)
    except ValueError:
        raise EngineUnavailable(f"{name}: unknown storage type {tensor.type_id}.", field="model") from None
    rows, columns = tensor.shape if len(tensor.shape) == 2 else (tensor.shape[0], 1)
    if columns % storage.block_size:
        problem = f"{columns} columns are not a multiple of {storage.kind.name}'s block, {storage.block_size}"
        raise EngineUnavailable(f"{name}: {problem}.", field="model")
    entry = _Entry(tensor, storage, rows, columns, storage.row_bytes(columns))
    if tensor.offset + rows * entry.row_bytes > file_bytes:
        raise EngineUnavailable(f"The GGUF file ends inside {name}: it is cut short or damaged.", field="model")
    return entry


def _checkpoint_name(name: str, fused: bool) -> str:
    """The Hugging Face name of a tensor; the name itself where there is none, which the loader then reports."""
    stem, _, kind = name.rpartition(".")
    if stem in _OUTER_NAMES:
        return f"{_OUTER_NAMES[stem]}.{kind}"
    match = _LAYER_TENSOR.fullmatch(name)
    known = (_FUSED_NAMES if fused else _LAYER_NAMES).get(match[2]) if match else None
    return f"model.layers.{match[1]}.{known}.{match[3]}" if match and known else name
