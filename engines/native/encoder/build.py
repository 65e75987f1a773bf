"""Builds an encoder's core from the engine's settings, and refuses those that only a decoder can honour."""

from __future__ import annotations

import json
import time
from typing import Any, cast

import torch

from config.engines import NativeSettings
from engines.errors import EngineUnavailable
from engines.native.device import device_name, prepare_device
from engines.native.embedding_config import load_embedding_config, task_of
from engines.native.encoder.core import EncoderCore
from engines.native.encoder.model import load_encoder
from engines.native.launch import OnProgress
from engines.native.models.encoders import longest_input
from engines.native.scheduler import SchedulerLimits
from engines.native.types import Pooling, Ready
from engines.native.weights.resolve import ModelFiles

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BUDGET = {"cpu": 2048, "cuda": 65536}  # tokens of a batch, padding included
_MAX_SEQS = {"cpu": 64, "cuda": 512}


def build_encoder(section: NativeSettings, files: ModelFiles, on_progress: OnProgress) -> tuple[EncoderCore, Ready]:
    """Raises EngineUnavailable, in words for an operator, when these settings cannot become a running core."""
    started = time.monotonic()
    refuse_decoder_settings(section)
    task_of(section, files.path)  # refuses to generate
    fields = cast("dict[str, Any]", json.loads((files.path / "config.json").read_text(encoding="utf-8")))
    max_model_len = _max_model_len(section, files, longest_input(fields))
    device = prepare_device(section)
    dtype = _dtype(section, fields)
    size = sum(file.stat().st_size for file in files.path.glob("*.safetensors"))
    on_progress("weights", 0, size)
    encoder = load_encoder(files.path, device=device, dtype=dtype, load_format=section.load_format, seed=section.seed)
    on_progress("weights", size, size)
    limits = SchedulerLimits(
        max_num_seqs=section.max_num_seqs or _MAX_SEQS[device.type],
        max_num_batched_tokens=section.max_num_batched_tokens or _BUDGET[device.type],
    )
    encoder.embed([[0] * min(max_model_len, limits.max_num_batched_tokens)], [Pooling()])  # the first one is slow
    ready = Ready(
        model=files.name,
        architecture=(fields.get("architectures") or [type(encoder).__name__])[0],
        device=device_name(device, torch.get_num_threads()),
        dtype=str(dtype).removeprefix("torch."),
        attention_backend="transformers",
        vocab_size=encoder.vocab_size,
        max_model_len=max_model_len,
        block_size=0,
        num_blocks=0,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        weight_bytes=encoder.weight_bytes,
        load_s=time.monotonic() - started,
        generates=False,
        embedding_size=encoder.hidden_size,
    )
    return EncoderCore(encoder, limits), ready


def refuse_decoder_settings(section: NativeSettings) -> None:
    """Raises EngineUnavailable naming a setting that would have no effect on an encoder."""
    refused = {
        "quantize": section.quantize != "none",
        "kv_cache_dtype": section.kv_cache_dtype != "auto",
        "attention_backend": section.attention_backend != "auto",
        "batch_invariant": section.batch_invariant,
    }
    for name, is_set in refused.items():
        if is_set:
            raise EngineUnavailable(
                f"{name} is {getattr(section, name)}, but the model is an encoder, for which that is not supported.",
                field=name,
            )


def _max_model_len(section: NativeSettings, files: ModelFiles, longest: int) -> int:
    """What is asked for, else what the model was trained on, within its positions."""
    asked = section.max_model_len
    if asked is not None and asked > longest:
        raise EngineUnavailable(
            f"max_model_len is {asked}, but the model has {longest} positions.", field="max_model_len"
        )
    return asked or min(load_embedding_config(files.path).max_length or longest, longest)


def _dtype(section: NativeSettings, fields: dict[str, Any]) -> torch.dtype:
    """auto is the checkpoint's own on GPU, and float32 on CPU, where nothing else is faster."""
    if section.dtype != "auto":
        return _DTYPES[section.dtype]
    if section.device == "cpu" or not torch.cuda.is_available():
        return torch.float32
    return _DTYPES.get(str(fields.get("dtype") or fields.get("torch_dtype")), torch.float32)
