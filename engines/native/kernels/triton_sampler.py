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
from engines.native.kernels.triton_launch import can_launch_early, release_successor, wait_for_predecessor
from engines.native.kernels.triton_noise import gumbel

CHUNK = 4096  # tokens per block of the scan
GROUP = 128  # tokens per maximum that the scan leaves
SHORT_LIST = 4096  # tokens of a filtered row that fit the list


@triton.jit
def _is_filtered(temperature, top_k, top_p, min_p, vocab):
    return (temperature > 0.0) & (((top_k > 0) & (top_k < vocab)) | (top_p < 1.0) | (min_p > 0.0))


@triton.jit
def _load_filters(row, top_k_ptr, top_p_ptr, min_p_ptr,
                  HAS_TOP_K: tl.constexpr, HAS_TOP_P: tl.constexpr, HAS_MIN_P: tl.constexpr):  # fmt: skip
    top_k = tl.load(top_k_ptr + row).to(tl.int32) if HAS_TOP_K else 0
    top_p = tl.load(top_p_ptr + row) if HAS_TOP_P else 1.0
    min_p = tl.load(min_p_ptr + row) if HAS_MIN_P else 0.0
    return top_k, top_p, min_p


@triton.jit
def _scan_kernel(
    logits_ptr,  # [rows, vocab], row stride logits_stride, bfloat16, float16 or float32
    temperature_ptr,  # [rows] float32, 0 = greedy
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seeds_ptr,
    positions_ptr,
    group_max_ptr,  # [rows, num_chunks * (CHUNK // GROUP)] float32, -inf past the vocabulary
    chunk_max_ptr,  # [rows, num_chunks] float32
    chunk_sum_ptr,  # [rows, num_chunks] float32: sum of exp(logit - chunk_max)
    chunk_mass_ptr,  # [rows, num_chunks] float32: the same at the row's temperature; filtered rows only
    chunk_best_ptr,  # [rows, num_chunks] float32: largest noise - (chunk_max - logit) / temperature, 0 if not drawn
    chunk_id_ptr,  # [rows, num_chunks] int32: where that is; the argmax for greedy rows
    vocab,
    logits_stride,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_TOP_K: tl.constexpr,
    HAS_TOP_P: tl.constexpr,
    HAS_MIN_P: tl.constexpr,
    COMPILED: tl.constexpr,
    PDL: tl.constexpr,
):
    row, chunk = tl.program_id(0), tl.program_id(1)
    cell = row * tl.num_programs(1) + chunk
    release_successor(PDL)
    wait_for_predecessor(PDL)
    temperature = tl.load(temperature_ptr + row)
    top_k, top_p, min_p = _load_filters(row, top_k_ptr, top_p_ptr, min_p_ptr, HAS_TOP_K, HAS_TOP_P, HAS_MIN_P)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    logits = tl.load(logits_ptr + row.to(tl.int64) * logits_stride + ids, mask=ids < vocab, other=float("-inf"))
    logits = logits.to(tl.float32)
    largest = tl.max(logits, axis=0)
    # A chunk that is masked as a whole has depth 0 to -inf: keep its terms out of inf - inf.
    base = tl.where(largest == float("-inf"), 0.0, largest)
    tl.store(chunk_max_ptr + cell, largest)
    tl.store(chunk_sum_ptr + cell, tl.sum(tl.exp(logits - base), axis=0))
    if _is_filtered(temperature, top_k, top_p, min_p, vocab):
        groups: tl.constexpr = CHUNK // GROUP
        group_max = tl.max(tl.reshape(logits, [groups, GROUP]), axis=1)
        tl.store(group_max_ptr + cell * groups + tl.arange(0, groups), group_max)
        tl.store(chunk_mass_ptr + cell, tl.sum(tl.exp((logits - base) * (1.0 / temperature)), axis=0))
    elif temperature > 0.0:
        noise = gumbel(ids, tl.load(seeds_ptr + row), tl.load(positions_ptr + row), COMPILED)
        best, where = tl.max(noise + (logits - base) * (1.0 / temperature), axis=0, return_indices=True)
        tl.store(chunk_best_ptr + cell, best)
        tl.store(chunk_id_ptr + cell, chunk * CHUNK + where)
    else:
        tl.store(chunk_best_ptr + cell, 0.0)
        tl.store(chunk_id_ptr + cell, chunk * CHUNK + tl.argmax(logits, axis=0))


@triton.jit
def _choose_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seeds_ptr,
    positions_ptr,
    group_max_ptr,
    chunk_max_ptr,
    chunk_sum_ptr,
    chunk_mass_ptr,
    chunk_best_ptr,
    chunk_id_ptr,
    list_ptr,  # [rows, SHORT_LIST] of the logits' dtype
    list_ids_ptr,  # [rows, SHORT_LIST] int32
    token_ids_ptr,  # [rows] int64
    logprobs_ptr,  # [rows] float32
    vocab,
    logits_stride,
    num_chunks,
    CHUNKS: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUPS_PER_CHUNK: tl.constexpr,
    SHORT_LIST: tl.constexpr,
    TILE: tl.constexpr,
    HAS_TOP_K: tl.constexpr,
    HAS_TOP_P: tl.constexpr,
    HAS_MIN_P: tl.constexpr,
    COMPILED: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0)
    release_successor(PDL)
    wait_for_predecessor(PDL)
    temperature = tl.load(temperature_ptr + row)
    top_k, top_p, min_p = _load_filters(row, top_k_ptr, top_p_ptr, min_p_ptr, HAS_TOP_K, HAS_TOP_P, HAS_MIN_P)
    chunks = tl.arange(0, CHUNKS)
    cells = row * num_chunks + chunks
    exists = chunks < num_chunks
    maxima = tl.load(chunk_max_ptr + cells, mask=exists, other=float("-inf"))
    largest = tl.max(maxima, axis=0)
    distance = tl.where(maxima == float("-inf"), float("-inf"), maxima - largest)
    sums = tl.load(chunk_sum_ptr + cells, mask=exists, other=0.0)
    log_sum = largest + tl.log(tl.sum(sums * tl.exp(distance), axis=0))
    row_ptr = logits_ptr + row.to(tl.int64) * logits_stride

    if _is_filtered(temperature, top_k, top_p, min_p, vocab):
        masses = tl.load(chunk_mass_ptr + cells, mask=exists, other=0.0)
        token = choose_filtered(
            row_ptr,
            list_ptr + row.to(tl.int64) * SHORT_LIST,
            list_ids_ptr + row.to(tl.int64) * SHORT_LIST,
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
            SHORT_LIST,
            GROUPS,
            TILE,
            COMPILED,
        )
    else:
        best = tl.load(chunk_best_ptr + cells, mask=exists, other=float("-inf"))
        scores = best + distance / tl.where(temperature > 0.0, temperature, 1.0)
        winner = tl.argmax(scores, axis=0)
        token = tl.load(chunk_id_ptr + row * num_chunks + winner)
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
    return sample_with_logprobs(logits, temperature, top_k, top_p, min_p, seeds, positions)[0]


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
    num_chunks = triton.cdiv(vocab, CHUNK)
    groups_per_chunk = CHUNK // GROUP
    device = logits.device
    group_max = torch.empty((rows, num_chunks * groups_per_chunk), dtype=torch.float32, device=device)
    chunk_floats = torch.empty((4, rows, num_chunks), dtype=torch.float32, device=device)
    chunk_ids = torch.empty((rows, num_chunks), dtype=torch.int32, device=device)
    token_ids = torch.empty(rows, dtype=torch.int64, device=device)
    logprobs = torch.empty(rows, dtype=torch.float32, device=device)
    if not rows:
        return token_ids, logprobs
    filtered = top_k is not None or top_p is not None or min_p is not None
    list_size = (rows, SHORT_LIST) if filtered else (1, 1)
    short_list = torch.empty(list_size, dtype=logits.dtype, device=device)
    short_list_ids = torch.empty(list_size, dtype=torch.int32, device=device)
    unused = temperature
    pdl = can_launch_early(logits, pdl)
    inputs = (
        logits,
        temperature,
        unused if top_k is None else top_k,
        unused if top_p is None else top_p,
        unused if min_p is None else min_p,
        seeds,
        positions,
        group_max,
        *chunk_floats,
        chunk_ids,
    )
    switches = {
        "HAS_TOP_K": top_k is not None,
        "HAS_TOP_P": top_p is not None,
        "HAS_MIN_P": min_p is not None,
        "COMPILED": logits.is_cuda,
        "PDL": pdl,
        "launch_pdl": pdl,
    }
    _scan_kernel[(rows, num_chunks)](
        *inputs, vocab, logits.stride(0), CHUNK=CHUNK, GROUP=GROUP, num_warps=4, **switches
    )
    _choose_kernel[(rows,)](
        *inputs,
        short_list,
        short_list_ids,
        token_ids,
        logprobs,
        vocab,
        logits.stride(0),
        num_chunks,
        CHUNKS=triton.next_power_of_2(num_chunks),
        GROUPS=triton.next_power_of_2(num_chunks * groups_per_chunk),
        GROUPS_PER_CHUNK=groups_per_chunk,
        SHORT_LIST=SHORT_LIST,
        TILE=SHORT_LIST,
        num_warps=16 if filtered else 4,
        **switches,
    )
    return token_ids, logprobs
