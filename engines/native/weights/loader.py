"""From a configuration and a path to a model that can compute.

Owns the order of things: layers make their tensors and enter them in the ledger, a source fills the ledger, the ops
take each matrix in the form they like. Every tensor that is missing or left over is an error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from engines.errors import EngineUnavailable
from engines.native.kernels.ops import Ops
from engines.native.layers.context import LayerContext, Shard, WeightSlot
from engines.native.models import CausalLM, model_class
from engines.native.models.model_config import ModelConfig
from engines.native.quantization.checkpoint import CheckpointSource, method_of
from engines.native.quantization.pending import PendingRows
from engines.native.quantization.weight import Quantizer
from engines.native.weights import OnProgress, no_progress
from engines.native.weights.body_names import BodyNames, is_body_alone
from engines.native.weights.dummy import DummySource
from engines.native.weights.gguf import GGUFSource
from engines.native.weights.safetensors import SafetensorsSource
from engines.native.weights.source import WeightSource

if TYPE_CHECKING:
    from engines.native.distributed.group import RankGroup

_NAMED_AT_MOST = 8  # tensors in an error message


def load_model(
    config: ModelConfig,
    path: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    ops: Ops,
    weight_dtype: torch.dtype | None = None,
    max_model_len: int | None = None,
    load_format: Literal["auto", "dummy"] = "auto",
    seed: int = 0,
    on_progress: OnProgress = no_progress,
    quantizer: Quantizer | None = None,
    group: RankGroup | None = None,
    tokenizer: str | Path | None = None,
) -> CausalLM:
    """Build the model that `config` describes and fill it from `path`, a folder of safetensors or a .gguf file.

    `dtype` is the arithmetic's; matrices may be kept in another, `weight_dtype`. `max_model_len` bounds positions
    (default: the model's own context). With a `group` it is this rank's part of the model. `tokenizer`, a path, lets a
    quantizer see text in the model's own tokens; without it they are random. Progress is told in bytes of the files.
    Raises EngineUnavailable naming the files or tensors that do not fit.
    """
    context = LayerContext(
        ops=ops,
        device=device,
        dtype=dtype,
        weight_dtype=weight_dtype or dtype,
        shard=group.shard if group is not None else Shard(),
        group=group,
        quantizer=quantizer,
    )
    model = model_class(config.architecture)(config, context, max_model_len or config.context_length)
    source: WeightSource
    if load_format == "dummy":
        source = DummySource({name: slot.shape for name, slot in context.slots.items()}, seed, device)
    elif path.is_dir():
        source = SafetensorsSource(path, quantized=config.quantization is not None)
        if config.quantization is not None:
            source = CheckpointSource(source, method_of(config.quantization))
    else:
        source = GGUFSource(path, config)
    if config.headless and is_body_alone(source):
        source = BodyNames(source)
    _check_names(context.slots, source, model)
    if quantizer is not None and quantizer.weighs_columns:
        from engines.native.weights.moments import quantize_by_moments  # and its kernels, where they are needed
        from engines.native.weights.probe_tokens import probe_tokens

        ids = probe_tokens(tokenizer, config.vocab_size, max_model_len or config.context_length)
        fill = functools.partial(quantize_by_moments, model, context, ids)
    else:
        fill = _fill_in_order
    _fill(context.slots, source, on_progress, fill)
    plain = _plain_tensors(context, config)
    context.slots.clear()  # the views would keep each weight alive after its replacement below
    for linear in context.linears:
        linear.prepare()
    if quantizer is not None:
        products = [tensor for linear in context.linears for tensor in linear.weight.tensors()]
        model.weight_bytes = _resident_bytes([*plain, *products])
    return model


def _plain_tensors(context: LayerContext, config: ModelConfig) -> list[Tensor]:
    """What was loaded and stays as it is, besides linear layers' weights: embedding, norms, biases."""
    heads = () if config.tie_word_embeddings else tuple(id(linear.weight) for linear in context.linears)
    targets = [piece.target for slot in context.slots.values() for piece in slot.pieces]
    return [target for target in targets if isinstance(target, Tensor) and id(target) not in heads]


def _resident_bytes(tensors: Iterable[Tensor]) -> int:
    """Memory of tensors that may share it."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _check_names(slots: dict[str, WeightSlot], source: WeightSource, model: CausalLM) -> None:
    missing = [name for name in slots if name not in source.tensors]
    unknown = [name for name in source.tensors if name not in slots and not model.ignores(name)]
    wrong = [
        f"{name} is {list(source.tensors[name].shape)} instead of {list(slot.shape)}"
        for name, slot in slots.items()
        if name in source.tensors and source.tensors[name].shape != slot.shape
    ]
    problems = [
        f"{label}: {_listed(names)}"
        for label, names in (("missing", missing), ("not of this model", unknown), ("of another shape", wrong))
        if names
    ]
    if problems:
        raise EngineUnavailable(f"The checkpoint does not fit its configuration. Tensors {'; '.join(problems)}.")


def _fill_in_order(names: Sequence[str], read: Callable[[str], int], pool: ThreadPoolExecutor) -> Iterator[int]:
    """In the order of the files, so that disks read forwards."""
    return pool.map(read, names)


def _fill(
    slots: dict[str, WeightSlot],
    source: WeightSource,
    on_progress: OnProgress,
    fill: Callable[[Sequence[str], Callable[[str], int], ThreadPoolExecutor], Iterator[int]] = _fill_in_order,
) -> None:
    """Tensors side by side, each on one thread, in the order of `fill`, which yields what `read` returns: bytes.

    Torch's own threads meet at a barrier after every small operation, which costs several times the work itself when
    the machine is busy.
    """
    names = [name for name in source.tensors if name in slots]
    total = sum(source.tensors[name].stored_bytes for name in names)
    done = 0
    on_progress("weights", 0, total)

    def read(name: str) -> int:
        for index, target in slots[name].pieces:
            if isinstance(target, PendingRows):
                target.fill(source, name, index, slots[name].shape)
            else:
                source.read(name, index, target)
        return source.tensors[name].stored_bytes

    with _one_thread_per_operation() as num_threads, ThreadPoolExecutor(num_threads) as pool:
        try:
            for stored_bytes in fill(names, read, pool):
                done += stored_bytes
                on_progress("weights", done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _one_thread_per_operation() -> Iterator[int]:
    """Yields how many threads torch may use otherwise."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield num_threads
    finally:
        torch.set_num_threads(num_threads)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
