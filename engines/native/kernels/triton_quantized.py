"""Which kernel multiplies a quantized weight by how many tokens on a GPU.

One token has products that take norm, residual and gate along (8 bits) or the gate (4 bits); up to TILE_ROWS tokens
have tiles that dequantize in registers, 8 bits with a scale a row up to TERMS_ROWS tiles that need not; beyond, a
product is bound by arithmetic: e4m3 by e4m3 on tensor cores that have it (torch._scaled_mm), and otherwise 16 bits by
16 bits in cuBLAS, of a weight dequantized for the occasion. nf4 and fp4 are int4's products with a table of values
(triton_int4_table).
"""

# torch's product of e4m3 matrices has no public name.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from engines.native.kernels import triton_int4_weight, triton_quantize
from engines.native.kernels.ops import Ops
from engines.native.kernels.quantized import Product, normalized
from engines.native.kernels.triton_int4_gemv import can_multiply, int4_gemv
from engines.native.kernels.triton_int4_linear import int4_linear
from engines.native.kernels.triton_int4_weight import Int4Weight
from engines.native.kernels.triton_quantize import TwoTerms
from engines.native.kernels.triton_quantized_gemv import quantized_gemv
from engines.native.kernels.triton_quantized_linear import quantized_linear
from engines.native.kernels.triton_terms_linear import terms_linear
from engines.native.quantization.bitsandbytes import TABLES
from engines.native.quantization.weight import QuantizedWeight

BATCH_SIZES = (1, 2, 17, 33, 65, 129, 257)
"""Numbers of tokens, one in each range that has kernels of its own."""

TILE_ROWS = 256
TERMS_ROWS = 64  # up to as many tokens activations in two terms of 8 bits pay; above, of e4m3, in one
GATED_ROWS = 16  # up to as many tokens a tile has registers for two products in two terms


def make_product(weight: QuantizedWeight, *, pdl: bool = True) -> Product:
    """The product of a weight on a GPU."""
    if weight.format.name == "int4" or weight.format.name in TABLES:
        paired = Int4Weight.of(weight)
        return Int4Product(paired, pdl, can_multiply(paired))
    return ByteProduct(weight, pdl, _multiplies_bytes(weight), _multiplies_e4m3(weight))


@dataclass(frozen=True, slots=True)
class Int4Product(Product):
    """int4, nf4 or fp4. The norm is a kernel of its own, and the gate of several tokens: what takes them along reads x
    too often."""

    weight: Int4Weight
    pdl: bool
    gemv: bool  # whether one token has a kernel of its own

    def tensors(self) -> list[Tensor]:
        return [self.weight.codes, self.weight.affine]

    def linear(self, x: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        if x.shape[0] == 1 and self.gemv:
            return int4_gemv(x, self.weight, bias, out_dtype=out_dtype, pdl=self.pdl)
        if x.shape[0] <= TILE_ROWS:
            return int4_linear(x, self.weight, bias, out_dtype=out_dtype, pdl=self.pdl)
        out = functional.linear(x, triton_int4_weight.dequantize(self.weight, x.dtype, pdl=self.pdl), bias)
        return out if out_dtype is None else out.to(out_dtype)

    def norm_gated_linear(self, ops: Ops, x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float,
                          bias: Tensor | None) -> tuple[Tensor, Tensor]:  # fmt: skip
        if x.shape[0] > 1 or not self.gemv:
            return Product.norm_gated_linear(self, ops, x, residual, norm_weight, eps, bias)
        normed, total = normalized(ops, x, residual, norm_weight, eps)
        return int4_gemv(normed, self.weight, bias, gated=True, pdl=self.pdl), total


@dataclass(frozen=True, slots=True)
class ByteProduct(Product):
    """int8 or fp8."""

    weight: QuantizedWeight
    pdl: bool
    in_terms: bool  # whether a few tokens are multiplied in two terms
    scaled_mm: bool  # whether many tokens are multiplied in e4m3

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.weight.codes, self.weight.scales, self.weight.offsets) if t is not None]

    def linear(self, x: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
        num_tokens = x.shape[0]
        if num_tokens == 1:
            return quantized_gemv(x, self.weight, bias, out_dtype=out_dtype, pdl=self.pdl)[0]
        if self.scaled_mm and num_tokens > TERMS_ROWS:
            codes, scales, _ = triton_quantize.quantize_tokens(x, pdl=self.pdl)
            return self._scaled(codes, scales, bias, x.dtype, out_dtype)
        if self.in_terms and num_tokens <= TERMS_ROWS:
            terms, _ = triton_quantize.quantize_in_two_terms(x, self.weight.codes.dtype, pdl=self.pdl)
            return terms_linear(terms, self.weight, bias, out_dtype=out_dtype or x.dtype, pdl=self.pdl)
        if num_tokens <= TILE_ROWS:
            return quantized_linear(x, self.weight, bias, out_dtype=out_dtype, pdl=self.pdl)
        out = functional.linear(x, triton_quantize.dequantize(self.weight, x.dtype, pdl=self.pdl), bias)
        return out if out_dtype is None else out.to(out_dtype)

    def norm_linear(self, ops: Ops, x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float,
                    bias: Tensor | None) -> tuple[Tensor, Tensor]:  # fmt: skip
        if x.shape[0] == 1:
            return quantized_gemv(
                x, self.weight, bias, residual=residual, norm_weight=norm_weight, eps=eps, pdl=self.pdl
            )
        if self.scaled_mm and x.shape[0] > TERMS_ROWS:
            codes, scales, total = triton_quantize.quantize_tokens(x, residual, norm_weight, eps, pdl=self.pdl)
            return self._scaled(codes, scales, bias, x.dtype, None), total
        if self.in_terms and x.shape[0] <= TERMS_ROWS:
            terms, total = self._normed_terms(x, residual, norm_weight, eps)
            return terms_linear(terms, self.weight, bias, out_dtype=x.dtype, pdl=self.pdl), total
        return Product.norm_linear(self, ops, x, residual, norm_weight, eps, bias)

    def norm_gated_linear(self, ops: Ops, x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float,
                          bias: Tensor | None) -> tuple[Tensor, Tensor]:  # fmt: skip
        num_tokens = x.shape[0]
        if num_tokens == 1:
            return quantized_gemv(
                x, self.weight, bias, residual=residual, norm_weight=norm_weight, eps=eps, gated=True, pdl=self.pdl
            )
        if self.in_terms and num_tokens <= GATED_ROWS:
            terms, total = self._normed_terms(x, residual, norm_weight, eps)
            return terms_linear(terms, self.weight, bias, out_dtype=x.dtype, gated=True, pdl=self.pdl), total
        if self.in_terms or num_tokens > TERMS_ROWS:
            return Product.norm_gated_linear(self, ops, x, residual, norm_weight, eps, bias)
        normed, total = normalized(ops, x, residual, norm_weight, eps)
        return quantized_linear(normed, self.weight, bias, gated=True, pdl=self.pdl), total

    def _normed_terms(
        self, x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float
    ) -> tuple[TwoTerms, Tensor]:
        dtype = self.weight.codes.dtype
        return triton_quantize.quantize_in_two_terms(x, dtype, residual, norm_weight, eps, pdl=self.pdl)

    def _scaled(self, codes: Tensor, scales: Tensor, bias: Tensor | None, dtype: torch.dtype,
                out_dtype: torch.dtype | None) -> Tensor:  # fmt: skip
        weight_scales = self.weight.scales.view(1, -1)
        out = torch._scaled_mm(
            codes, self.weight.codes.t(), scales, weight_scales, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        if bias is not None:
            out += bias
        return out.to(out_dtype or dtype)


def _multiplies_bytes(weight: QuantizedWeight) -> bool:
    """A scale a row, columns in sixteens, and Hopper or later, for which the tiles were measured."""
    if weight.scales.shape[1] != 1 or weight.offsets is not None or not weight.codes.is_cuda or weight.num_columns % 16:
        return False
    return torch.cuda.get_device_capability(weight.device) >= (9, 0)


def _multiplies_e4m3(weight: QuantizedWeight) -> bool:
    """Beyond that torch's product wants rows in sixteens too, and scales in float32."""
    in_float32 = weight.format.name == "fp8" and weight.scales.dtype == torch.float32
    return in_float32 and weight.num_rows % 16 == 0 and _multiplies_bytes(weight)
