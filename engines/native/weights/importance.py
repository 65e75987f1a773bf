"""What an error in each column of a linear layer costs, measured on random tokens while a model is loaded.

The output's error is the sum over columns of the weight's error times what the column is multiplied with, so that a
squared error costs the mean square of that (the diagonal of the Hessian that GPTQ and AWQ take from a calibration text;
arXiv 2210.17323, 2306.00978). Activations of language models have a few columns that are tens to hundreds of times the
others, and these are a property of the weights rather than of the text (arXiv 2402.17762): random token ids show them,
so that no text is asked for and none is favoured. Figures are in docs/quantization.md.

Owns the order of loading that this takes: a layer's tensors are read, the tokens pass through it, its matrices are
quantized, and meanwhile the next layer is read. Plain matrices of three layers at most are in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from engines.native.kernels.quantized import Product
from engines.native.kv_cache import KVCache, KVCacheShape
from engines.native.layers.attention_metadata import AttentionMetadata
from engines.native.layers.context import LayerContext
from engines.native.layers.linear import Linear
from engines.native.models import CausalLM
from engines.native.quantization.pending import PendingRows, PendingWeight

NUM_TOKENS = 256
_BLOCK_SIZE = 128  # which all attention kernels take
_SEED = 0
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


@dataclass(slots=True)
class Recorder(Product):
    """The product with plain matrices, stacked by rows, that keeps the sum of squares of each column of its input."""

    parts: Sequence[Tensor]  # [rows, K] each
    squares: Tensor | None = None  # [K] float32

    def linear(self, x: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        self.squares = x.float().square().sum(0)
        out = torch.cat([functional.linear(x, part.to(x.dtype)) for part in self.parts], dim=1)
        if bias is not None:
            out += bias
        return out if out_dtype is None else out.to(out_dtype)

    def tensors(self) -> list[Tensor]:
        return list(self.parts)


class Probe:
    """Random tokens on their way through a model: `enter`, then `pass_layer` for each in order. All ranks take part."""

    def __init__(self, model: CausalLM, context: LayerContext, max_model_len: int) -> None:
        self._model = model
        self._context = context
        config, device = model.config, context.device
        length = min(NUM_TOKENS, max_model_len)
        heads = context.shard.take(config.num_kv_heads, "num_key_value_heads")
        shape = KVCacheShape(
            num_layers=1,
            num_kv_heads=heads.stop - heads.start,
            head_dim=config.head_dim,
            block_size=_BLOCK_SIZE,
            dtype=context.weight_dtype,
        )
        num_blocks = -(-length // _BLOCK_SIZE)
        self._kv_cache = KVCache(shape, num_blocks, device).layers[0]
        self._positions = torch.arange(length, device=device)
        self._metadata = AttentionMetadata(
            query_start_loc=torch.tensor([0, length], dtype=torch.int32, device=device),
            seq_lens=torch.tensor([length], dtype=torch.int32, device=device),
            block_tables=torch.arange(num_blocks, dtype=torch.int32, device=device).unsqueeze(0),
            slot_mapping=torch.arange(length, device=device),
            num_decodes=0,
            max_query_len=length,
            max_seq_len=length,
        )
        self._state: tuple[Tensor, Tensor | None] | None = None

    def enter(self) -> None:
        """Needs the embedding table."""
        generator = torch.Generator().manual_seed(_SEED)
        ids = torch.randint(0, self._model.config.vocab_size, self._positions.shape, generator=generator)
        self._state = self._model.embed_tokens(ids.to(self._context.device)), None

    def pass_layer(self, index: int, linears: Sequence[Linear]) -> list[Tensor]:
        """The importance of the columns of each of the layer's `linears`, whose matrices are still plain."""
        assert self._state is not None, "enter comes first"
        recorders: list[Recorder] = []
        with ExitStack() as stack:
            for linear in linears:
                assert isinstance(linear.weight, PendingWeight)
                recorders.append(Recorder(linear.weight.plain()))
                stack.enter_context(linear.multiplied_by(recorders[-1]))
            layer = self._model.layers[index]
            self._state = layer(*self._state, self._positions, self._kv_cache, self._metadata)
        return [_importance(recorder) for recorder in recorders]


def _importance(recorder: Recorder) -> Tensor:
    """Powers of two, so that ranks of any number agree although they sum in other orders. What overflowed tells nothing
    (random weights do that): every column then counts the same."""
    assert recorder.squares is not None, "the layer has not used one of its linears"
    squares = recorder.squares
    rounded = squares.clamp(min=torch.finfo(torch.float32).tiny).log2().round().exp2()
    return torch.where(squares.isfinite().all(), rounded, torch.ones_like(squares))


def quantize_by_importance(
    model: CausalLM,
    context: LayerContext,
    max_model_len: int,
    names: Sequence[str],
    read: Callable[[str], int],
    pool: ThreadPoolExecutor,
) -> Iterator[int]:
    """Fill all slots by `read` of each name, on the pool's threads, and quantize what is pending.

    Yields what `read` returns.
    """
    num_layers = len(model.layers)
    stages: list[list[str]] = [[] for _ in range(num_layers + 1)]  # what no layer has, then a layer's each
    for name in names:
        stages[_stage(name)].append(name)
    linears: list[list[Linear]] = [[] for _ in range(num_layers)]
    layer_of = {
        id(piece.target.weight): _stage(name) - 1
        for name, slot in context.slots.items()
        for piece in slot.pieces
        if isinstance(piece.target, PendingRows)
    }
    for linear in context.linears:
        if id(linear.weight) in layer_of:
            linears[layer_of[id(linear.weight)]].append(linear)

    def submit(stage: int) -> list[Future[int]]:
        return [pool.submit(read, name) for name in stages[stage]] if stage <= num_layers else []

    probe = Probe(model, context, max_model_len)
    yield from _results(submit(0))
    probe.enter()
    quantizing: list[Future[None]] = []
    reading = submit(1)
    for index in range(num_layers):
        yield from _results(reading)
        reading = submit(index + 2)
        importances = probe.pass_layer(index, linears[index])
        list(_results(quantizing))
        quantizing = [
            pool.submit(linear.weight.quantize, importance)
            for linear, importance in zip(linears[index], importances, strict=True)
        ]
    list(_results(quantizing))


def _stage(name: str) -> int:
    found = _LAYER.match(name)
    return 0 if found is None else int(found[1]) + 1


def _results(futures: Sequence[Future[Any]]) -> Iterator[Any]:
    return (future.result() for future in futures)
