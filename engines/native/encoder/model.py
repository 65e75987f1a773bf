"""An encoder's forward pass: transformers' own model of the family, over padded batches.

The mathematics is transformers' because nothing here would gain from our own: encoders have no cache, no decoding and
no chunks, which is what our layers are for, while each family differs in its embeddings, positions and norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from engines.errors import EngineUnavailable
from engines.native.pooling import HostVectors, pooled
from engines.native.types import Pooling

_UNUSED = ("pooler.",)  # what a checkpoint may lack: it stands behind the hidden states


class Encoder:
    """Satisfies `engines.native.encoder.core.EmbeddingModel`."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self._model = model
        self._device = device
        self._padding: int = getattr(model.config, "pad_token_id", None) or 0
        self.weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
        self.hidden_size: int = model.config.hidden_size
        self.vocab_size: int = model.config.vocab_size

    @torch.inference_mode()
    def embed(self, inputs: Sequence[list[int]], poolings: Sequence[Pooling]) -> list[bytes]:
        """Little-endian float32; `poolings` may differ in everything."""
        lengths = torch.tensor([len(one) for one in inputs])
        longest = int(lengths.max())
        rows = torch.tensor([one + [self._padding] * (longest - len(one)) for one in inputs])
        mask = torch.arange(longest) < lengths[:, None]
        # int64: some families count positions from the mask.
        states = self._model(input_ids=self._to(rows), attention_mask=self._to(mask.long())).last_hidden_state
        lengths = self._to(lengths)
        modes = [pooling.mode for pooling in poolings]
        if len(set(modes)) == 1:
            vectors = pooled(states, lengths, modes[0])
        else:
            vectors = torch.cat([pooled(states[i : i + 1], lengths[i : i + 1], mode) for i, mode in enumerate(modes)])
        return HostVectors(vectors, poolings).to_bytes()

    def _to(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device)


def load_encoder(
    path: Path, *, device: torch.device, dtype: torch.dtype, load_format: Literal["auto", "dummy"], seed: int
) -> Encoder:
    """Raises EngineUnavailable for a folder that transformers cannot load whole."""
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
        if load_format == "dummy":
            torch.manual_seed(seed)
            model = AutoModel.from_config(config, dtype=dtype)
        else:
            model = _load(AutoModel, path, config, dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise EngineUnavailable(f"The encoder cannot be loaded: {error}", field="model") from error
    return Encoder(model.to(device).eval(), device)


def _load(auto_model: Any, path: Path, config: Any, dtype: torch.dtype) -> Any:
    model, report = auto_model.from_pretrained(
        path,
        config=config,
        dtype=dtype,
        local_files_only=True,
        ignore_mismatched_sizes=True,  # they are told below
        use_safetensors=True,  # pickled weights can run code when read
        output_loading_info=True,
    )
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(_UNUSED))
    wrong = sorted(name for name, *_ in report["mismatched_keys"])
    if missing or wrong:
        names = ", ".join((missing + wrong)[:8])
        raise EngineUnavailable(
            f"The checkpoint does not fit its configuration. Tensors missing or of another shape: {names}.",
            field="model",
        )
    return model
