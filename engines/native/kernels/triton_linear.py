"""Linear layers for few tokens, bound by reading the weights once: x [M, K] times weight [N, K] transposed.

Two kernels. `_gemv_kernel`, for one token, multiplies in float32 on the ordinary cores and hides latency by many small
blocks. `_skinny_kernel`, for a handful up to a tile of tokens, feeds the matrix units through a deep pipeline of
asynchronous copies. Both can scale the input by its RMSNorm on the way in, apply silu(gate) * up across the two halves
of the weight, and add a bias or the residual stream on the way out, which saves a decode step those launches.

K may be cut over several blocks (split-K) to fill the GPU when N is small. Partial sums meet in float32 in memory and
the last block to arrive adds them in their fixed order, so the result does not depend on timing.

Which kernel and which tile for which shape is `choose_config`; it knows nothing of models.
The plain PyTorch twins are reference.linear, rms_norm, silu_and_mul and the addition.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from engines.native.kernels.triton_launch import (
    ARRIVAL_COUNTERS,
    arrival_counters,
    can_launch_early,
    prefetch_rows_to_l2,
    release_successor,
    wait_for_predecessor,
)

PREFETCH_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True)
class LinearConfig:
    """Tile of outputs (tokens, rows of the weight) and of the summed dimension; block_m 1 chooses the GEMV kernel."""

    block_m: int
    block_n: int
    block_k: int
    split_k: int = 1
    num_warps: int = 4
    num_stages: int = 4


@triton.jit
def _prefetch_weights(weight_ptr, first_row, num_rows, first_k, K, BLOCK_N: tl.constexpr, PREFETCH_K: tl.constexpr):
    """The head of this block's weights into L2, before the wait for the predecessor: they depend on no kernel."""
    start = weight_ptr + first_row.to(tl.int64) * K + first_k
    row_bytes = tl.minimum(PREFETCH_K, K - first_k) * (weight_ptr.dtype.element_ty.primitive_bitwidth // 8)
    row_stride = K * (weight_ptr.dtype.element_ty.primitive_bitwidth // 8)
    prefetch_rows_to_l2(start, tl.minimum(BLOCK_N, num_rows - first_row), row_stride, row_bytes // 16 * 16)


@triton.jit
def _finish(
    acc, up, rows, columns, mask, bias_ptr, residual_ptr, out_ptr, N, residual_stride, out_stride,
    GATED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Bias, gate, residual, store. acc and up are float32; rows and columns index out [M, N]."""
    if HAS_BIAS:
        acc += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)
        if GATED:
            up += tl.load(bias_ptr + N + columns, mask=columns < N, other=0.0).to(tl.float32)
    if GATED:
        acc = acc * tl.sigmoid(acc) * up
    if HAS_RESIDUAL:
        acc += tl.load(residual_ptr + rows * residual_stride + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows * out_stride + columns, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gemv_kernel(
    x_ptr,  # [1, K]
    weight_ptr,  # [N, K], or [2 * N, K] if GATED
    bias_ptr,
    residual_ptr,
    norm_weight_ptr,
    out_ptr,  # [1, N]
    partial_ptr,  # [cdiv(N, BLOCK_N), SPLIT_K, BLOCK_N] float32, unused with SPLIT_K == 1
    arrived,
    N,
    K,
    eps,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    NORM: tl.constexpr,
    PREFETCH_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (cdiv(N, BLOCK_N), SPLIT_K). Each block sums BLOCK_N rows over its share of K."""
    tile, split = tl.program_id(0), tl.program_id(1)
    columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    weight_rows = tl.minimum(columns, N - 1).to(tl.int64)
    k_per_split = tl.cdiv(tl.cdiv(K, SPLIT_K), BLOCK_K) * BLOCK_K
    first_k = split * k_per_split
    release_successor(PDL)
    if PDL:
        _prefetch_weights(weight_ptr, tile * BLOCK_N, N, first_k, K, BLOCK_N, PREFETCH_K)
        if GATED:
            _prefetch_weights(weight_ptr, N + tile * BLOCK_N, 2 * N, first_k, K, BLOCK_N, PREFETCH_K)
    wait_for_predecessor(PDL)

    products = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    up_products = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    squares = tl.zeros([BLOCK_K], tl.float32)
    for start in range(first_k, tl.minimum(first_k + k_per_split, K), BLOCK_K):
        ks = start + tl.arange(0, BLOCK_K)
        in_range = ks < K
        weight = tl.load(weight_ptr + weight_rows[:, None] * K + ks[None, :], mask=in_range[None, :], other=0.0)
        if GATED:
            up_weight = tl.load(
                weight_ptr + (weight_rows + N)[:, None] * K + ks[None, :], mask=in_range[None, :], other=0.0
            )
        x = tl.load(x_ptr + ks, mask=in_range, other=0.0).to(tl.float32)
        if NORM:
            squares += x * x
            x *= tl.load(norm_weight_ptr + ks, mask=in_range, other=0.0).to(tl.float32)
        products += weight.to(tl.float32) * x[None, :]
        if GATED:
            up_products += up_weight.to(tl.float32) * x[None, :]
    acc = tl.sum(products, axis=1)
    up = tl.sum(up_products, axis=1)
    if NORM:
        scale = tl.rsqrt(tl.sum(squares, axis=0) / K + eps)
        acc *= scale
        up *= scale
    if SPLIT_K > 1:
        partials = partial_ptr + tile * SPLIT_K * BLOCK_N + tl.arange(0, BLOCK_N)
        tl.store(partials + split * BLOCK_N, acc)
        tl.debug_barrier()
        if tl.atomic_add(arrived + tile, 1, sem="acq_rel") < SPLIT_K - 1:
            return
        tl.store(arrived + tile, 0)
        acc = tl.zeros([BLOCK_N], tl.float32)
        for other in tl.static_range(SPLIT_K):
            acc += tl.load(partials + other * BLOCK_N, cache_modifier=".cg")
    _finish(acc, up, 0, columns, columns < N, bias_ptr, residual_ptr, out_ptr, N, 0, 0,
            GATED, HAS_BIAS, HAS_RESIDUAL)  # fmt: skip


@triton.jit
def _skinny_kernel(
    x_ptr,  # [M, K]
    weight_ptr,  # [N, K], or [2 * N, K] if GATED
    bias_ptr,
    residual_ptr,  # [M, N]
    norm_weight_ptr,
    out_ptr,  # [M, N]
    partial_ptr,  # [tiles, SPLIT_K, BLOCK_M, BLOCK_N] float32, unused with SPLIT_K == 1
    arrived,
    M,
    N,
    K,
    eps,
    x_stride,
    residual_stride,
    out_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    NORM: tl.constexpr,
    PREFETCH_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (cdiv(N, BLOCK_N), SPLIT_K, cdiv(M, BLOCK_M))."""
    tile, split = tl.program_id(0), tl.program_id(1)
    rows = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k_per_split = tl.cdiv(tl.cdiv(K, SPLIT_K), BLOCK_K) * BLOCK_K
    first_k = split * k_per_split
    release_successor(PDL)
    if PDL:
        _prefetch_weights(weight_ptr, tile * BLOCK_N, N, first_k, K, BLOCK_N, PREFETCH_K)
        if GATED:
            _prefetch_weights(weight_ptr, N + tile * BLOCK_N, 2 * N, first_k, K, BLOCK_N, PREFETCH_K)
    wait_for_predecessor(PDL)

    ks = tl.arange(0, BLOCK_K)
    x_rows = x_ptr + rows.to(tl.int64)[:, None] * x_stride + ks[None, :]
    weight_rows = weight_ptr + tl.minimum(columns, N - 1).to(tl.int64)[:, None] * K + ks[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    squares = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for start in tl.range(first_k, tl.minimum(first_k + k_per_split, K), BLOCK_K, num_stages=NUM_STAGES):
        if EVEN_K:
            x = tl.load(x_rows + start, mask=(rows < M)[:, None], other=0.0)
            weight = tl.load(weight_rows + start)
        else:
            in_range = ks < K - start
            x = tl.load(x_rows + start, mask=(rows < M)[:, None] & in_range[None, :], other=0.0)
            weight = tl.load(weight_rows + start, mask=in_range[None, :], other=0.0)
        if NORM:
            norm_weight = tl.load(norm_weight_ptr + start + ks, mask=ks < K - start, other=0.0).to(tl.float32)
            wide = x.to(tl.float32)
            squares += wide * wide
            x = (wide * norm_weight[None, :]).to(x.dtype)
        acc = tl.dot(x, tl.trans(weight), acc, input_precision="ieee")
        if GATED:
            up_rows = weight_rows + N.to(tl.int64) * K
            up_weight = (
                tl.load(up_rows + start) if EVEN_K else tl.load(up_rows + start, mask=in_range[None, :], other=0.0)
            )
            up = tl.dot(x, tl.trans(up_weight), up, input_precision="ieee")
    if NORM:
        # The scale is common to a row, so it can wait until the row's squares are known.
        scale = tl.rsqrt(tl.sum(squares, axis=1) / K + eps)[:, None]
        acc *= scale
        up *= scale
    if SPLIT_K > 1:
        flat = tl.program_id(2) * tl.num_programs(0) + tile
        cells = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        partials = partial_ptr + flat.to(tl.int64) * (SPLIT_K * BLOCK_M * BLOCK_N) + cells
        used = (rows < M)[:, None]
        tl.store(partials + split * (BLOCK_M * BLOCK_N), acc, mask=used)
        # The barrier puts every thread's stores before thread 0's release.
        tl.debug_barrier()
        if tl.atomic_add(arrived + flat, 1, sem="acq_rel") < SPLIT_K - 1:
            return
        tl.store(arrived + flat, 0)
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for other in tl.static_range(SPLIT_K):
            acc += tl.load(partials + other * (BLOCK_M * BLOCK_N), mask=used, other=0.0, cache_modifier=".cg")
    mask = (rows < M)[:, None] & (columns < N)[None, :]
    _finish(acc, up, rows.to(tl.int64)[:, None], columns[None, :], mask, bias_ptr, residual_ptr, out_ptr, N,
            residual_stride, out_stride, GATED, HAS_BIAS, HAS_RESIDUAL)  # fmt: skip


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    pdl: bool = False,
    config: LinearConfig | None = None,
) -> Tensor:
    """x [M, K] times weight [N, K] transposed, plus bias [N]; returns [M, N].

    norm_weight [K]: x is first normalized, rms_norm(x, norm_weight, eps). gated: weight is [2 * N, K] and the result
    silu_and_mul of the product. residual [M, N] is added last. Sums in float32, rounded once, to out_dtype (default:
    that of x). Rows of x and of residual may be strided; weight is contiguous with K a multiple of 8.
    """
    (num_tokens, k), rows = x.shape, weight.shape[0]
    n = rows // 2 if gated else rows
    config = config or choose_config(num_tokens, n, k, gated=gated, normed=norm_weight is not None)
    out = torch.empty((num_tokens, n), dtype=out_dtype or x.dtype, device=x.device)
    tiles_n, tiles_m = triton.cdiv(n, config.block_n), triton.cdiv(num_tokens, config.block_m)
    split_k = config.split_k
    assert split_k == 1 or (not gated and norm_weight is None and tiles_n * tiles_m <= ARRIVAL_COUNTERS)
    partial_size = tiles_n * tiles_m * split_k * config.block_m * config.block_n if split_k > 1 else 1
    partial = torch.empty(partial_size, dtype=torch.float32, device=x.device)
    pdl = can_launch_early(x, pdl)
    tensors = (
        x,
        weight,
        weight if bias is None else bias,
        x if residual is None else residual,
        weight if norm_weight is None else norm_weight,
        out,
        partial,
        arrival_counters(x.device),
    )
    switches = {
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "SPLIT_K": split_k,
        "GATED": gated,
        "HAS_BIAS": bias is not None,
        "HAS_RESIDUAL": residual is not None,
        "NORM": norm_weight is not None,
        "PREFETCH_K": max(PREFETCH_BYTES // (config.block_n * weight.element_size()), 64),
        "PDL": pdl,
        "num_warps": config.num_warps,
        "launch_pdl": pdl,
    }
    if config.block_m == 1:
        assert num_tokens == 1
        _gemv_kernel[(tiles_n, split_k)](*tensors, n, k, eps, **switches)
    else:
        _skinny_kernel[(tiles_n, split_k, tiles_m)](
            *tensors,
            num_tokens,
            n,
            k,
            eps,
            x.stride(0),
            0 if residual is None else residual.stride(0),
            out.stride(0),
            BLOCK_M=config.block_m,
            EVEN_K=k % (config.block_k * split_k) == 0,
            NUM_STAGES=config.num_stages,
            num_stages=config.num_stages,
            **switches,
        )
    return out


def choose_config(num_tokens: int, n: int, k: int, *, gated: bool = False, normed: bool = False) -> LinearConfig:
    """A tile for M = num_tokens tokens and a weight of n (twice that if gated) rows of k, from timings on an H100."""
    if num_tokens == 1:
        return LinearConfig(block_m=1, block_n=8, block_k=min(1024, triton.next_power_of_2(k)))
    block_m = 16 if num_tokens <= 16 else 32 if num_tokens <= 32 else 64
    split_k = 1 if gated or normed or n > 4096 else 4
    return LinearConfig(block_m=block_m, block_n=32, block_k=128, split_k=split_k)
