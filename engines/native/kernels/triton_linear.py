"""Linear layers for a handful of tokens up to a tile of them, bound by reading the weight once.

x [M, K] times weight [N, K] transposed on the matrix units, fed through a deep pipeline of asynchronous copies. K may
be cut over several blocks (split-K) to fill the GPU where N is small: partial sums meet in float32 in memory, and the
last block to arrive adds them in their fixed order, so the result does not depend on timing. silu(gate) * up can be
applied across the two halves of the weight on the way out.

Which tile for which shape, and where cuBLAS is faster, is `choose_config`; it knows nothing of models.
The plain PyTorch twins are reference.linear and silu_and_mul.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

import functools
from dataclasses import dataclass, replace

import torch
import triton.language as tl
from torch import Tensor

from engines.native.kernels.triton_kernel import kernel
from engines.native.kernels.triton_launch import (
    ARRIVAL_COUNTERS,
    arrival_counters,
    can_launch_early,
    div_ceil,
)
from engines.native.kernels.triton_split_k import begin_split


@dataclass(frozen=True, slots=True)
class LinearConfig:
    """Tile of outputs (tokens, rows of the weight) and of the summed dimension."""

    block_m: int
    block_n: int
    block_k: int
    split_k: int = 1
    num_warps: int = 4
    num_stages: int = 4
    prefetch_bytes: int = 32 * 1024  # of a block's weights, asked for before the predecessor is done
    pdl: bool = True

    def cut(self, num_tokens: int, n: int, device: torch.device, *, gated: bool) -> tuple[tuple[int, int, int], Tensor]:
        """The grid for outputs [num_tokens, n], and room for partial sums, which there are where K is cut."""
        tiles_n, tiles_m = div_ceil(n, self.block_n), div_ceil(num_tokens, self.block_m)
        assert self.split_k == 1 or (not gated and tiles_n * tiles_m <= ARRIVAL_COUNTERS)
        partial_size = tiles_n * tiles_m * self.split_k * self.block_m * self.block_n if self.split_k > 1 else 0
        partial = torch.empty(partial_size, dtype=torch.float32, device=device)
        return (tiles_n, self.split_k, tiles_m), partial


@kernel(varying=["M"])
def _skinny_kernel(
    x_ptr,  # [M, K]
    weight_ptr,  # [N, K], or [2 * N, K] if GATED
    bias_ptr,
    out_ptr,  # [M, N]
    partial_ptr,  # [tiles, SPLIT_K, BLOCK_M, BLOCK_N] float32, unused with SPLIT_K == 1
    arrived,
    M,
    N,
    K,
    x_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PREFETCH_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (cdiv(N, BLOCK_N), SPLIT_K, cdiv(M, BLOCK_M))."""
    tile, split = tl.program_id(0), tl.program_id(1)
    rows = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    first_k, last_k = begin_split(weight_ptr, N, K, BLOCK_N, BLOCK_K, SPLIT_K, GATED, PREFETCH_K, PDL)

    ks = tl.arange(0, BLOCK_K)
    x_rows = x_ptr + rows.to(tl.int64)[:, None] * x_stride + ks[None, :]
    weight_rows = weight_ptr + tl.minimum(columns, N - 1).to(tl.int64)[:, None] * K + ks[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.range(first_k, last_k, BLOCK_K, num_stages=NUM_STAGES):
        if EVEN_K:
            x = tl.load(x_rows + start, mask=(rows < M)[:, None], other=0.0)
            weight = tl.load(weight_rows + start)
        else:
            in_range = ks < K - start
            x = tl.load(x_rows + start, mask=(rows < M)[:, None] & in_range[None, :], other=0.0)
            weight = tl.load(weight_rows + start, mask=in_range[None, :], other=0.0)
        acc = tl.dot(x, tl.trans(weight), acc, input_precision="ieee")
        if GATED:
            up_rows = weight_rows + N.to(tl.int64) * K
            up_weight = (
                tl.load(up_rows + start) if EVEN_K else tl.load(up_rows + start, mask=in_range[None, :], other=0.0)
            )
            up = tl.dot(x, tl.trans(up_weight), up, input_precision="ieee")
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
    if HAS_BIAS:
        acc += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    if GATED:
        if HAS_BIAS:
            up += tl.load(bias_ptr + N + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
        acc = acc * tl.sigmoid(acc) * up
    mask = (rows < M)[:, None] & (columns < N)[None, :]
    cells = rows.to(tl.int64)[:, None] * N + columns[None, :]
    tl.store(out_ptr + cells, acc.to(out_ptr.dtype.element_ty), mask=mask)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    config: LinearConfig,
    gated: bool = False,
    out_dtype: torch.dtype | None = None,
    pdl: bool = False,
) -> Tensor:
    """x [M, K] times weight [N, K] transposed, plus bias [N]; returns [M, N].

    gated: weight is [2 * N, K] and the result silu_and_mul of the product. Sums in float32, rounded once, to out_dtype
    (default: that of x). Rows of x may be strided; weight is contiguous with K a multiple of 8.
    """
    (num_tokens, k), rows = x.shape, weight.shape[0]
    n = rows // 2 if gated else rows
    out = torch.empty((num_tokens, n), dtype=out_dtype or x.dtype, device=x.device)
    grid, partial = config.cut(num_tokens, n, x.device, gated=gated)
    _skinny_kernel(
        grid,
        x,
        weight,
        weight if bias is None else bias,
        out,
        partial,
        arrival_counters(x.device),
        num_tokens,
        n,
        k,
        x.stride(0),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        SPLIT_K=config.split_k,
        EVEN_K=k % (config.block_k * config.split_k) == 0,
        NUM_STAGES=config.num_stages,
        GATED=gated,
        HAS_BIAS=bias is not None,
        PREFETCH_K=config.prefetch_bytes // (rows // n * config.block_n * weight.element_size()),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        pdl=can_launch_early(x, pdl and config.pdl),
    )
    return out


SKINNY_ROWS = 64
"""Up to this many tokens our own products read the weights faster than cuBLAS does."""


@functools.cache
def choose_config(num_tokens: int, n: int, k: int, *, gated: bool = False) -> LinearConfig | None:
    """The tile for num_tokens tokens and a weight of n rows of k, from timings on an H100; None: cuBLAS is faster.

    64 rows of tokens feed the wide matrix instructions, and win even where most are padding, unless the weight is so
    large that its own stream is all that counts, or so small that K must be cut. See benchmarks/gpu/NOTES.md. A gated
    product gets half as many columns a tile, each from two rows of the weight.
    """
    config = _choose_tile(num_tokens, n, k)
    if config is None or not gated:
        return config
    return replace(config, block_n=max(16, config.block_n // 2)) if config.split_k == 1 else None


def _choose_tile(num_tokens: int, n: int, k: int) -> LinearConfig | None:
    if num_tokens > SKINNY_ROWS:
        return None
    if num_tokens <= 32 and n <= 2048:
        return LinearConfig(16 if num_tokens <= 16 else 32, 32, 128, split_k=4)
    if num_tokens <= 16 and k > 2048:
        return _for_few_tokens(n, k)
    if num_tokens <= 16 and n > 16384:
        return LinearConfig(16, 64, 128, num_stages=5, pdl=False)
    if num_tokens <= 32 and n > 65536:
        return LinearConfig(32, 64, 128, pdl=False)
    if n <= 4096:
        return LinearConfig(64, 32, 128, num_stages=5)
    if n <= 24576:
        return LinearConfig(64, 64, 128)
    return LinearConfig(64, 128, 64, num_warps=8, num_stages=5)


def _for_few_tokens(n: int, k: int) -> LinearConfig:
    """Up to 16 tokens, K above 2048."""
    if n <= 4096:
        if k > 8192:
            return LinearConfig(16, 32, 256, split_k=2, num_stages=3, pdl=False)
        return LinearConfig(64, 32, 128, num_stages=5)
    if n <= 8192:
        return LinearConfig(16, 16, 256, num_stages=5)
    return LinearConfig(16, 64, 128, num_stages=5, pdl=False)
