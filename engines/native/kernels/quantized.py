"""`Ops` over weights that are kept quantized: every prepared weight knows how it is multiplied.

Owns the dispatch and the plain PyTorch product, which dequantizes at every use: the oracle, on any device and dtype.
Which kernel serves a format on a device is `QuantizedOps`' argument; the other operations are those of the ops that it
wraps. Without quantization none of this is in the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from engines.native.kernels.ops import LinearWeight, Ops
from engines.native.layers.attention_metadata import AttentionMetadata
from engines.native.quantization.weight import QuantizedWeight


class Product(Protocol):
    """A weight [N, K] and how it is multiplied. The operations with a body are compositions."""

    def linear(self, x: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        """x [num_tokens, K] to [num_tokens, N] in out_dtype (default: that of x)."""
        ...

    def tensors(self) -> list[Tensor]:
        """What it keeps in memory."""
        ...

    def norm_linear(
        self,
        ops: Ops,
        x: Tensor,
        residual: Tensor | None,
        norm_weight: Tensor,
        eps: float,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """See Ops.norm_linear; `ops` has the norms."""
        normed, total = normalized(ops, x, residual, norm_weight, eps)
        return self.linear(normed, bias), total

    def norm_gated_linear(
        self,
        ops: Ops,
        x: Tensor,
        residual: Tensor | None,
        norm_weight: Tensor,
        eps: float,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """See Ops.norm_gated_linear."""
        gate_up, total = self.norm_linear(ops, x, residual, norm_weight, eps, bias)
        return ops.silu_and_mul(gate_up), total


def normalized(ops: Ops, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual); the sum is x where there is no residual."""
    if residual is None:
        return ops.rms_norm(x, weight, eps), x
    return ops.add_rms_norm(x, residual, weight, eps)


@dataclass(frozen=True, slots=True)
class DenseProduct(Product):
    """A weight that is not quantized, in the form that the wrapped ops prepared."""

    ops: Ops
    weight: LinearWeight
    kept: Sequence[Tensor]

    def linear(self, x: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        if out_dtype == torch.float32:
            return self.ops.logits(x, self.weight)
        return self.ops.linear(x, self.weight, bias)

    def tensors(self) -> list[Tensor]:
        return list(self.kept)

    def norm_linear(self, ops: Ops, x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float,
                    bias: Tensor | None) -> tuple[Tensor, Tensor]:  # fmt: skip
        return ops.norm_linear(x, residual, norm_weight, eps, self.weight, bias)

    def norm_gated_linear(self, ops: Ops, x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float,
                          bias: Tensor | None) -> tuple[Tensor, Tensor]:  # fmt: skip
        return ops.norm_gated_linear(x, residual, norm_weight, eps, self.weight, bias)


@dataclass(frozen=True, slots=True)
class ReferenceProduct(Product):
    """Dequantized to x's dtype at every use."""

    weight: QuantizedWeight

    def linear(self, x: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        out = functional.linear(x, self.weight.dequantize(x.dtype), bias)
        return out if out_dtype is None else out.to(out_dtype)

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.weight.codes, self.weight.scales, self.weight.offsets) if t is not None]


@dataclass(frozen=True, slots=True)
class SplitProduct(Product):
    """Rows of different formats, each a product of its own: a fused matrix of a file that mixes formats."""

    parts: Sequence[tuple[int, Product]]  # rows, and their product

    def linear(self, x: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        sizes = [rows for rows, _ in self.parts]
        biases: Sequence[Tensor | None] = [None] * len(sizes) if bias is None else bias.split(sizes)
        outs = [part.linear(x, own, out_dtype) for (_, part), own in zip(self.parts, biases, strict=True)]
        return torch.cat(outs, dim=1)

    def tensors(self) -> list[Tensor]:
        return [tensor for _, part in self.parts for tensor in part.tensors()]


class QuantizedOps(Ops):
    """`inner`'s operations, with linear layers by `Product`. `make` serves a quantized weight on this device."""

    def __init__(self, inner: Ops, make: Callable[[QuantizedWeight], Product]) -> None:
        self._inner = inner
        self._make = make

    def prepare_linear(self, weight: Tensor | Sequence[QuantizedWeight | Tensor]) -> Product:
        """A plain matrix, or the parts of one by rows."""
        parts = [weight] if isinstance(weight, Tensor) else weight
        products = [(part.shape[0], self._prepare(part)) for part in parts]
        return products[0][1] if len(products) == 1 else SplitProduct(products)

    def _prepare(self, part: QuantizedWeight | Tensor) -> Product:
        return dense(self._inner, part) if isinstance(part, Tensor) else self._make(part)

    def linear(self, x: Tensor, weight: Product, bias: Tensor | None = None) -> Tensor:
        return weight.linear(x, bias)

    def logits(self, x: Tensor, weight: Product) -> Tensor:
        return weight.linear(x, None, torch.float32)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._inner.rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return self._inner.add_rms_norm(x, residual, weight, eps)

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        return self._inner.silu_and_mul(gate_up)

    def norm_linear(
        self, x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float, weight: Product,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        return weight.norm_linear(self._inner, x, residual, norm_weight, eps, bias)

    def norm_gated_linear(
        self, x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float, weight: Product,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        return weight.norm_gated_linear(self._inner, x, residual, norm_weight, eps, bias)

    def rope_and_cache(self, *arguments: Any, **named: Any) -> Tensor:
        return self._inner.rope_and_cache(*arguments, **named)

    def attend(self, *arguments: Any, **named: Any) -> Tensor:
        return self._inner.attend(*arguments, **named)

    def paged_attention(
        self, q: Tensor, key_cache: Tensor, value_cache: Tensor, metadata: AttentionMetadata, scale: float,
        sliding_window: int = 0,
    ) -> Tensor:  # fmt: skip
        return self._inner.paged_attention(q, key_cache, value_cache, metadata, scale, sliding_window)


def dense(ops: Ops, weight: Tensor) -> DenseProduct:
    """A plain matrix as a product of `ops`."""
    prepared = ops.prepare_linear(weight)
    kept = prepared if isinstance(prepared, Tensor) else getattr(prepared, "panels", weight)
    return DenseProduct(ops, prepared, [kept])


def dequantized(ops: Ops, weight: QuantizedWeight, dtype: torch.dtype) -> DenseProduct:
    """Where no kernel serves a format: its matrix in plain numbers, for good."""
    return dense(ops, weight.dequantize(dtype))
