"""The sampler's core on the GPU: one token per row of logits, in two kernels, nothing sorted, nothing read back.

The CUDA twin of sampling/torch_core.py, where the meaning of every argument is written down; the rules for ties are
those of sampling/sampler.py, the noise is defined by sampling/noise.py. It knows nothing of requests, penalties or
masks: those have been applied to the logits.

`_scan_kernel`, grid (rows, chunks of CHUNK tokens), reads the logits once. For each chunk it leaves the largest logit
and where it is, the sum of exponentials, and, for rows without top-k, top-p or min-p, the best of logit / temperature
+ noise. `_choose_kernel`, grid (rows,), combines the chunks. For greedy and unfiltered rows that is all.

For filtered rows triton_filters takes over.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from engines.native.kernels.triton_filters import choose_filtered
from engines.native.kernels.triton_kernel import kernel
from engines.native.kernels.triton_launch import (
    can_launch_early,
    div_ceil,
    next_power_of_2,
    release_successor,
    wait_for_predecessor,
)
from engines.native.kernels.triton_noise import gumbel

CHUNK = 4096  # tokens per block of the scan
GROUP = 128  # tokens per maximum that the scan leaves
SHORT_LIST = 4096  # tokens of a filtered row that fit the list
FEW_GROUPS = 64  # whose tokens are tried first for top-p
PAIRS = 256  # tokens that are ranked by comparing all pairs
_PER_ROW = ["temperature_ptr", "top_k_ptr", "top_p_ptr", "min_p_ptr", "seeds_ptr", "positions_ptr"]


@triton.jit
def _is_filtered(temperature, top_k, top_p, min_p, vocab):
    return (temperature > 0.0) & (((top_k > 0) & (top_k < vocab)) | (top_p < 1.0) | (min_p > 0.0))


@triton.jit
def _load_filters(row, top_k_ptr, top_p_ptr, min_p_ptr, FILTERED: tl.constexpr):
    top_k = tl.load(top_k_ptr + row).to(tl.int32) if FILTERED else 0
    top_p = tl.load(top_p_ptr + row) if FILTERED else 1.0
    min_p = tl.load(min_p_ptr + row) if FILTERED else 0.0
    return top_k, top_p, min_p


@kernel(varying=[*_PER_ROW, "chunk_floats", "chunk_ids"])
def _scan_kernel(
    logits_ptr,  # [rows, vocab], row stride logits_stride, bfloat16, float16 or float32
    temperature_ptr,  # [rows] float32, 0 = greedy
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seeds_ptr,
    positions_ptr,
    group_max_ptr,  # [rows, num_chunks * (CHUNK // GROUP)] float32, -inf past the vocabulary; filtered rows only
    chunk_floats,  # 4 of [rows, num_chunks] float32: the largest logit; the sum of exp(logit - largest); the same at
    # the row's temperature (filtered rows); the largest noise - (largest - logit) / temperature (rows without filter)
    chunk_ids,  # [rows, num_chunks] int32: where that is; the argmax for greedy rows
    vocab,
    logits_stride,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    FILTERED: tl.constexpr,
    COMPILED: tl.constexpr,
    PDL: tl.constexpr,
):
    row, chunk = tl.program_id(0), tl.program_id(1)
    cell = row * tl.num_programs(1) + chunk
    plane = tl.num_programs(0) * tl.num_programs(1)
    release_successor(PDL)
    wait_for_predecessor(PDL)
    temperature = tl.load(temperature_ptr + row)
    top_k, top_p, min_p = _load_filters(row, top_k_ptr, top_p_ptr, min_p_ptr, FILTERED)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    logits = tl.load(logits_ptr + row.to(tl.int64) * logits_stride + ids, mask=ids < vocab, other=float("-inf"))
    logits = logits.to(tl.float32)
    largest = tl.max(logits, axis=0)
    # A chunk that is masked as a whole has depth 0 to -inf: keep its terms out of inf - inf.
    base = tl.where(largest == float("-inf"), 0.0, largest)
    tl.store(chunk_floats + cell, largest)
    tl.store(chunk_floats + plane + cell, tl.sum(tl.exp(logits - base), axis=0))
    if _is_filtered(temperature, top_k, top_p, min_p, vocab):
        groups: tl.constexpr = CHUNK // GROUP
        group_max = tl.max(tl.reshape(logits, [groups, GROUP]), axis=1)
        tl.store(group_max_ptr + cell * groups + tl.arange(0, groups), group_max)
        tl.store(chunk_floats + 2 * plane + cell, tl.sum(tl.exp((logits - base) * (1.0 / temperature)), axis=0))
    elif temperature > 0.0:
        noise = gumbel(ids, tl.load(seeds_ptr + row), tl.load(positions_ptr + row), COMPILED)
        best, where = tl.max(noise + (logits - base) * (1.0 / temperature), axis=0, return_indices=True)
        tl.store(chunk_floats + 3 * plane + cell, best)
        tl.store(chunk_ids + cell, chunk * CHUNK + where)
    else:
        tl.store(chunk_floats + 3 * plane + cell, 0.0)
        tl.store(chunk_ids + cell, chunk * CHUNK + tl.argmax(logits, axis=0))


@kernel(varying=[*_PER_ROW, "chunk_floats", "chunk_ids", "logprobs_ptr"])
def _choose_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seeds_ptr,
    positions_ptr,
    group_max_ptr,
    chunk_floats,
    chunk_ids,
    list_ptr,  # [rows, SHORT_LIST] of the logits' dtype
    list_ids_ptr,  # [rows, SHORT_LIST + GROUPS] int32: the tokens of the list, then the groups they come from
    token_ids_ptr,  # [rows] int64
    logprobs_ptr,  # [rows] float32
    vocab,
    logits_stride,
    num_chunks,
    CHUNKS: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUPS_PER_CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    FEW_GROUPS: tl.constexpr,
    PAIRS: tl.constexpr,
    SHORT_LIST: tl.constexpr,
    FILTERED: tl.constexpr,
    COMPILED: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0)
    plane = tl.num_programs(0) * num_chunks
    release_successor(PDL)
    wait_for_predecessor(PDL)
    temperature = tl.load(temperature_ptr + row)
    top_k, top_p, min_p = _load_filters(row, top_k_ptr, top_p_ptr, min_p_ptr, FILTERED)
    chunks = tl.arange(0, CHUNKS)
    cells = chunk_floats + row * num_chunks + chunks
    exists = chunks < num_chunks
    maxima = tl.load(cells, mask=exists, other=float("-inf"))
    largest = tl.max(maxima, axis=0)
    distance = tl.where(maxima == float("-inf"), float("-inf"), maxima - largest)
    sums = tl.load(cells + plane, mask=exists, other=0.0)
    log_sum = largest + tl.log(tl.sum(sums * tl.exp(distance), axis=0))
    row_ptr = logits_ptr + row.to(tl.int64) * logits_stride

    if _is_filtered(temperature, top_k, top_p, min_p, vocab):
        masses = tl.load(cells + 2 * plane, mask=exists, other=0.0)
        row_list_ids = list_ids_ptr + row.to(tl.int64) * (SHORT_LIST + GROUPS)
        token = choose_filtered(
            row_ptr,
            list_ptr + row.to(tl.int64) * SHORT_LIST,
            row_list_ids,
            row_list_ids + SHORT_LIST,
            group_max_ptr + row.to(tl.int64) * num_chunks * GROUPS_PER_CHUNK,
            num_chunks * GROUPS_PER_CHUNK,
            vocab,
            largest,
            tl.sum(masses * tl.exp(distance / temperature), axis=0),
            1.0 / temperature,
            top_k,
            top_p,
            min_p,
            tl.load(seeds_ptr + row),
            tl.load(positions_ptr + row),
            FEW_GROUPS,
            PAIRS,
            SHORT_LIST,
            GROUPS,
            GROUP,
            SHORT_LIST,
            COMPILED,
        )
    else:
        best = tl.load(cells + 3 * plane, mask=exists, other=float("-inf"))
        scores = best + distance / tl.where(temperature > 0.0, temperature, 1.0)
        winner = tl.minimum(tl.argmax(scores, axis=0), num_chunks - 1)
        token = tl.load(chunk_ids + row * num_chunks + winner)
    # Among NaNs the place of the largest is anywhere, and what is read there no token: what a graph computes for unused
    # places may be NaN, and what a model computes in a format too narrow for it.
    token = tl.minimum(tl.maximum(token, 0), vocab - 1)
    tl.store(token_ids_ptr + row, token.to(tl.int64))
    tl.store(logprobs_ptr + row, tl.load(row_ptr + token).to(tl.float32) - log_sum)


def sample_core(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """As torch_core.sample_core."""
    return sample_with_logprobs(logits, temperature, top_k, top_p, min_p, seeds, positions, pdl=True)[0]


def sample_with_logprobs(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    seeds: Tensor,
    positions: Tensor,
    *,
    pdl: bool = False,
) -> tuple[Tensor, Tensor]:
    """The chosen token of each row, [rows] int64, and its log-probability under softmax(logits), [rows] float32.

    logits [rows, vocab] float32, bfloat16 or float16, read only; temperature [rows] float32, 0 = greedy; top_k [rows]
    int64 or int32, 0 = off; top_p, min_p [rows] float32, 1 and 0 = off; None = off for all; seeds, positions [rows]
    int64 key the noise. A row needs at least one finite logit.
    """
    rows, vocab = logits.shape
    num_chunks = div_ceil(vocab, CHUNK)
    groups_per_chunk = CHUNK // GROUP
    groups = next_power_of_2(num_chunks * groups_per_chunk)
    device = logits.device
    token_ids = torch.empty(rows, dtype=torch.int64, device=device)
    logprobs = torch.empty(rows, dtype=torch.float32, device=device)
    if not rows:
        return token_ids, logprobs
    is_filtered = top_k is not None or top_p is not None or min_p is not None
    num_listed = rows if is_filtered else 0
    group_max = torch.empty((num_listed, num_chunks * groups_per_chunk), dtype=torch.float32, device=device)
    short_list = torch.empty((num_listed, SHORT_LIST), dtype=logits.dtype, device=device)
    short_list_ids = torch.empty((num_listed, SHORT_LIST + groups), dtype=torch.int32, device=device)
    inputs = (
        logits,
        temperature,
        *(_filters(temperature, top_k, top_p, min_p) if is_filtered else (temperature,) * 3),
        seeds,
        positions,
        group_max,
        torch.empty((4, rows, num_chunks), dtype=torch.float32, device=device),
        torch.empty((rows, num_chunks), dtype=torch.int32, device=device),
    )
    switches = {"FILTERED": is_filtered, "COMPILED": logits.is_cuda, "pdl": can_launch_early(logits, pdl)}
    _scan_kernel(
        (rows, num_chunks), *inputs, vocab, logits.stride(0), CHUNK=CHUNK, GROUP=GROUP, num_warps=4, **switches
    )
    _choose_kernel(
        (rows,),
        *inputs,
        short_list,
        short_list_ids,
        token_ids,
        logprobs,
        vocab,
        logits.stride(0),
        num_chunks,
        CHUNKS=next_power_of_2(num_chunks),
        GROUPS=groups,
        GROUPS_PER_CHUNK=groups_per_chunk,
        GROUP=GROUP,
        FEW_GROUPS=FEW_GROUPS,
        PAIRS=PAIRS,
        SHORT_LIST=SHORT_LIST,
        num_warps=16 if is_filtered else 4,
        **switches,
    )
    return token_ids, logprobs


def _filters(
    temperature: Tensor, top_k: Tensor | None, top_p: Tensor | None, min_p: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """All three, those that are off with their neutral values: one compiled kernel for any combination."""
    return (
        torch.zeros_like(temperature, dtype=torch.int64) if top_k is None else top_k,
        torch.ones_like(temperature) if top_p is None else top_p,
        torch.zeros_like(temperature) if min_p is None else min_p,
    )
