"""The best token of a part of the vocabulary, and the best of several parts: two kernels in front of the exchange
between ranks, one behind it.

The CUDA twin of local_best and best_of in sampling/torch_core.py. An offer is three int32 of each row: the bits of the
part's largest logit, the bits of the best token's score, which is relative to that logit, and the token. Chunks of a
rank's tokens and ranks are both parts, so one kernel compares either.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

import torch
import triton.language as tl
from torch import Tensor

from engines.native.kernels.triton_kernel import kernel
from engines.native.kernels.triton_launch import (
    can_launch_early,
    div_ceil,
    next_power_of_2,
    release_successor,
    wait_for_predecessor,
)
from engines.native.kernels.triton_noise import gumbel

CHUNK = 4096  # tokens per block


@kernel(varying=["temperature_ptr", "seeds_ptr", "positions_ptr", "offers_ptr"])
def _offer_kernel(
    logits_ptr,  # [rows, num_tokens] float32, row stride logits_stride
    temperature_ptr,  # [rows] float32, 0 = greedy; like the next two unused without SAMPLED
    seeds_ptr,  # [rows] int64
    positions_ptr,  # [rows] int64
    offers_ptr,  # [chunks, 3, rows] int32
    num_tokens,
    first,
    logits_stride,
    CHUNK: tl.constexpr,
    SAMPLED: tl.constexpr,
    COMPILED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (rows, chunks of tokens)."""
    row, chunk, rows = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    release_successor(PDL)
    wait_for_predecessor(PDL)
    local_ids = chunk * CHUNK + tl.arange(0, CHUNK)
    mask = local_ids < num_tokens
    logits = tl.load(logits_ptr + row.to(tl.int64) * logits_stride + local_ids, mask=mask, other=float("-inf"))
    peak = tl.max(logits, axis=0)
    # A part that is masked as a whole has depths 0 to -inf: keep its terms out of inf - inf.
    scores = logits - tl.where(peak == float("-inf"), 0.0, peak)
    if SAMPLED:
        temperature = tl.load(temperature_ptr + row)
        if temperature > 0.0:
            noise = gumbel(local_ids + first, tl.load(seeds_ptr + row), tl.load(positions_ptr + row), COMPILED)
            scores = scores * (1.0 / temperature) + noise
    score, where = tl.max(scores, axis=0, return_indices=True)
    offer = offers_ptr + chunk * 3 * rows + row
    tl.store(offer, peak.to(tl.int32, bitcast=True))
    tl.store(offer + rows, score.to(tl.int32, bitcast=True))
    # Among NaNs the best may be said to lie beyond the last.
    tl.store(offer + 2 * rows, first + tl.minimum(chunk * CHUNK + where, num_tokens - 1))


@kernel(varying=["temperature_ptr", "offers_ptr", "offer_ptr", "token_ids_ptr", "num_parts"])
def _compare_kernel(
    offers_ptr,  # [num_parts, 3, rows] int32
    temperature_ptr,  # [rows] float32, unused without SAMPLED
    offer_ptr,  # [3, rows] int32, unused with FINAL
    token_ids_ptr,  # [rows] int64, unused without FINAL
    num_parts,
    PARTS: tl.constexpr,  # a power of 2, num_parts or more
    SAMPLED: tl.constexpr,
    FINAL: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (rows,)."""
    row, rows = tl.program_id(0), tl.num_programs(0)
    parts = tl.arange(0, PARTS)
    mask = parts < num_parts
    offers = offers_ptr + parts * 3 * rows + row
    release_successor(PDL)
    wait_for_predecessor(PDL)
    peaks = tl.load(offers, mask=mask, other=-8388608).to(tl.float32, bitcast=True)  # the bits of -inf
    scores = tl.load(offers + rows, mask=mask, other=0).to(tl.float32, bitcast=True)
    tokens = tl.load(offers + 2 * rows, mask=mask, other=0)
    peak = tl.max(peaks, axis=0)
    below = peaks - tl.where(peak == float("-inf"), 0.0, peak)
    if SAMPLED:
        temperature = tl.load(temperature_ptr + row)
        below = below * (1.0 / tl.where(temperature > 0.0, temperature, 1.0))
    score, winner = tl.max(scores + below, axis=0, return_indices=True)
    token = tl.sum(tl.where(parts == winner, tokens, 0), axis=0)
    if FINAL:
        tl.store(token_ids_ptr + row, token.to(tl.int64))
    else:
        tl.store(offer_ptr + row, peak.to(tl.int32, bitcast=True))
        tl.store(offer_ptr + rows + row, score.to(tl.int32, bitcast=True))
        tl.store(offer_ptr + 2 * rows + row, token)


def local_best(
    logits: Tensor, temperature: Tensor | None, seeds: Tensor | None, positions: Tensor | None, first: int
) -> Tensor:
    """See torch_core.local_best. logits: float32, of any row stride."""
    rows, num_tokens = logits.shape
    chunks = div_ceil(num_tokens, CHUNK)
    offers = torch.empty(chunks, 3, rows, dtype=torch.int32, device=logits.device)
    _offer_kernel(
        (rows, chunks),
        logits,
        logits if temperature is None else temperature,
        offers if seeds is None else seeds,
        offers if positions is None else positions,
        offers,
        num_tokens,
        first,
        logits.stride(0),
        CHUNK=CHUNK,
        SAMPLED=temperature is not None,
        COMPILED=logits.is_cuda,
        num_warps=8,
        pdl=can_launch_early(logits, True),
    )
    return _compared(offers, temperature, final=False)


def best_of(offers: Tensor, temperature: Tensor | None) -> Tensor:
    """See torch_core.best_of."""
    return _compared(offers, temperature, final=True)


def _compared(offers: Tensor, temperature: Tensor | None, *, final: bool) -> Tensor:
    num_parts, _, rows = offers.shape
    shape, dtype = ((rows,), torch.int64) if final else ((3, rows), torch.int32)
    out = torch.empty(shape, dtype=dtype, device=offers.device)
    _compare_kernel(
        (rows,),
        offers,
        offers if temperature is None else temperature,
        out,
        out,
        num_parts,
        PARTS=next_power_of_2(num_parts),
        SAMPLED=temperature is not None,
        FINAL=final,
        num_warps=1,
        pdl=can_launch_early(offers, True),
    )
    return out
