"""Where a product over a part of K begins, and where one made as its transpose ends. Knows no formats of weights."""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

import triton
import triton.language as tl

from engines.native.kernels.triton_launch import prefetch_weights, release_successor, wait_for_predecessor


@triton.jit
def begin_split(
    weight_ptr,  # [N, K], or [2 * N, K] if GATED
    N,
    K,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    GATED: tl.constexpr,
    PREFETCH_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """The first column of this block's part of K, and the one behind its last. Its weights are asked for before the
    predecessor is done, which it is in the end. Grid: (cdiv(N, BLOCK_N), SPLIT_K, ...)."""
    tile = tl.program_id(0)
    k_per_split = tl.cdiv(tl.cdiv(K, SPLIT_K), BLOCK_K) * BLOCK_K
    first_k = tl.program_id(1) * k_per_split
    release_successor(PDL)
    if PDL and PREFETCH_K > 0:
        prefetch_weights(weight_ptr, tile * BLOCK_N, N, first_k, K, BLOCK_N, PREFETCH_K)
        if GATED:
            prefetch_weights(weight_ptr, N + tile * BLOCK_N, 2 * N, first_k, K, BLOCK_N, PREFETCH_K)
    wait_for_predecessor(PDL)
    return first_k, tl.minimum(first_k + k_per_split, K)


@triton.jit
def finish_transposed(
    acc,
    up,
    bias_ptr,
    out_ptr,
    partial_ptr,
    arrived,
    features,
    tokens,
    M,
    N,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT_K: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """acc and up [BLOCK_N, BLOCK_M] of this split to outputs [M, N], by the last split to arrive."""
    if SPLIT_K > 1:
        flat = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
        cells = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        partials = partial_ptr + flat.to(tl.int64) * (SPLIT_K * BLOCK_M * BLOCK_N) + cells
        used = (tokens < M)[None, :]
        tl.store(partials + tl.program_id(1) * (BLOCK_M * BLOCK_N), acc, mask=used)
        # The barrier puts every thread's stores before thread 0's release.
        tl.debug_barrier()
        if tl.atomic_add(arrived + flat, 1, sem="acq_rel") < SPLIT_K - 1:
            return
        tl.store(arrived + flat, 0)
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for other in tl.static_range(SPLIT_K):
            acc += tl.load(partials + other * (BLOCK_M * BLOCK_N), mask=used, other=0.0, cache_modifier=".cg")
    if HAS_BIAS:
        acc += tl.load(bias_ptr + features, mask=features < N, other=0.0).to(tl.float32)[:, None]
    if GATED:
        if HAS_BIAS:
            up += tl.load(bias_ptr + N + features, mask=features < N, other=0.0).to(tl.float32)[:, None]
        acc = acc * tl.sigmoid(acc) * up
    mask = (features < N)[:, None] & (tokens < M)[None, :]
    cells = tokens.to(tl.int64)[None, :] * N + features[:, None]
    tl.store(out_ptr + cells, acc.to(out_ptr.dtype.element_ty), mask=mask)
