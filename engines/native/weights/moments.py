"""How the columns of each linear layer's input go along, measured on a few tokens while a model is loaded.

What an error of a weight costs depends on what its column is multiplied with: the second moments of the layer's input,
the Hessian that GPTQ takes from a calibration text (arXiv 2210.17323). quantization/feedback.py says what becomes of
them, probe_tokens.py which tokens they are. The tokens pass through the plain layers: through quantized ones, as GPTQ
has it, was no better. Figures are in docs/quantization.md.

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
from engines.native.quantization.feedback import numbers_of_ranks, piece_of, second_moments
from engines.native.quantization.pending import PendingRows, PendingWeight

_BLOCK_SIZE = 128  # which all attention kernels take
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


@dataclass(slots=True)
class Recorder(Product):
    """The product with plain matrices, stacked by rows, that keeps the second moments of its input's columns."""

    parts: Sequence[Tensor]  # [rows, K] each
    piece: int  # columns
    moments: Tensor | None = None  # [K / piece, piece, piece] float32

    def linear(self, x: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        self.moments = second_moments(x, self.piece)
        if self.piece == 1:  # in powers of two ranks of any number agree, although they sum in other orders
            self.moments = self.moments.clamp(min=torch.finfo(torch.float32).tiny).log2().round().exp2()
        out = torch.cat([functional.linear(x, part.to(x.dtype)) for part in self.parts], dim=1)
        if bias is not None:
            out += bias
        return out if out_dtype is None else out.to(out_dtype)

    def tensors(self) -> list[Tensor]:
        return list(self.parts)


class Probe:
    """Tokens [sequences, length] on their way through a model: `enter`, then `pass_layer` for each in order. All ranks
    take part."""

    def __init__(self, model: CausalLM, context: LayerContext, tokens: Tensor) -> None:
        self._model = model
        self._context = context
        config, device = model.config, context.device
        count, length = tokens.shape
        heads = context.shard.take(config.num_kv_heads, "num_key_value_heads")
        shape = KVCacheShape(
            num_layers=1,
            num_kv_heads=heads.stop - heads.start,
            head_dim=config.head_dim,
            block_size=_BLOCK_SIZE,
            dtype=context.weight_dtype,
        )
        blocks = -(-length // _BLOCK_SIZE)  # of a sequence
        self._kv_cache = KVCache(shape, count * blocks, device).layers[0]
        self._tokens = tokens.flatten().to(device)
        self._positions = torch.arange(length, device=device).repeat(count)
        slots = torch.arange(count, device=device).unsqueeze(1) * (blocks * _BLOCK_SIZE) + self._positions[:length]
        self._metadata = AttentionMetadata(
            query_start_loc=torch.arange(0, (count + 1) * length, length, dtype=torch.int32, device=device),
            seq_lens=torch.full((count,), length, dtype=torch.int32, device=device),
            block_tables=torch.arange(count * blocks, dtype=torch.int32, device=device).view(count, blocks),
            slot_mapping=slots.flatten(),
            num_decodes=0,
            max_query_len=length,
            max_seq_len=length,
        )
        self._num_ranks = numbers_of_ranks(context.shard.world_size, config.num_heads, config.intermediate_size)
        self._state: tuple[Tensor, Tensor | None] | None = None

    def enter(self) -> None:
        """Needs the embedding table."""
        self._state = self._model.embed_tokens(self._tokens), None

    def pass_layer(self, index: int, linears: Sequence[Linear]) -> list[Tensor]:
        """See feedback.second_moments: those of each of the layer's `linears`, whose matrices are still plain."""
        assert self._state is not None, "enter comes first"
        recorders: list[Recorder] = []
        with ExitStack() as stack:
            for linear in linears:
                assert isinstance(linear.weight, PendingWeight)
                recorders.append(Recorder(linear.weight.plain(), self._piece(linear, linear.weight)))
                stack.enter_context(linear.multiplied_by(recorders[-1]))
            layer = self._model.layers[index]
            self._state = layer(*self._state, self._positions, self._kv_cache, self._metadata)
        moments = [recorder.moments for recorder in recorders if recorder.moments is not None]
        assert len(moments) == len(linears), "the layer has not used one of its linears"
        return moments

    def _piece(self, linear: Linear, weight: PendingWeight) -> int:
        """Columns that errors are spread over, 1 if they are not: never more than a rank has, of any number."""
        columns, group_size = weight.shape[1], weight.quantizer.group_size
        if not weight.quantizer.spreads_errors:
            return 1
        if not linear.splits_columns:
            return piece_of(columns, [1], group_size)
        return piece_of(columns * self._context.shard.world_size, self._num_ranks, group_size)


def quantize_by_moments(
    model: CausalLM,
    context: LayerContext,
    tokens: Tensor,
    names: Sequence[str],
    read: Callable[[str], int],
    pool: ThreadPoolExecutor,
) -> Iterator[int]:
    """Fill all slots by `read` of each name, on the pool's threads, and quantize what is pending.

    tokens: [sequences, length] int64. Yields what `read` returns.
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

    probe = Probe(model, context, tokens)
    yield from _results(submit(0))
    probe.enter()
    quantizing: list[Future[None]] = []
    reading = submit(1)
    for index in range(num_layers):
        yield from _results(reading)
        reading = submit(index + 2)
        moments = probe.pass_layer(index, linears[index])
        list(_results(quantizing))
        quantizing = [
            pool.submit(linear.weight.quantize, of_inputs)
            for linear, of_inputs in zip(linears[index], moments, strict=True)
        ]
    list(_results(quantizing))


def _stage(name: str) -> int:
    found = _LAYER.match(name)
    return 0 if found is None else int(found[1]) + 1


def _results(futures: Sequence[Future[Any]]) -> Iterator[Any]:
    return (future.result() for future in futures)
