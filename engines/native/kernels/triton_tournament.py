"""SynthID-Text's tournament on the GPU, and the filters before it: the kernels behind sampling/torch_watermark.compete.

A launch for the row's maximum, one for each round of ROUND_LAYERS layers and one that writes. In a round every chunk of
CHUNK tokens adds its tokens' masses to the row's classes; the last chunk of a row to arrive plays the round. Sums are
integers, so that they do not depend on who comes first. Keys come from triton_watermark.fresh_contexts.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from engines.native.kernels.triton_filters import find_kept
from engines.native.kernels.triton_kernel import kernel
from engines.native.kernels.triton_launch import (
    arrival_counters,
    can_launch_early,
    div_ceil,
    next_power_of_2,
    release_successor,
    wait_for_predecessor,
)
from engines.native.kernels.triton_watermark import CHUNK, token_bits
from engines.native.sampling.torch_watermark import MASS_UNIT, ROUND_LAYERS, VANISHED
from engines.native.watermark import prf

_SYNTHID_DOMAIN = tl.constexpr(prf.SYNTHID_DOMAIN)
_CLASSES = tl.constexpr(2**ROUND_LAYERS)
_LAYERS = tl.constexpr(ROUND_LAYERS)
_MASS_UNIT = tl.constexpr(MASS_UNIT)
_VANISHED = tl.constexpr(VANISHED)


@kernel(varying=["at_ptr", "maxima_ptr"])
def _max_kernel(
    logits_ptr,
    at_ptr,  # [n] int64
    maxima_ptr,  # [n, chunks] float32
    vocab,
    logits_stride,
    CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):
    i, chunk = tl.program_id(0), tl.program_id(1)
    release_successor(PDL)
    wait_for_predecessor(PDL)
    token_ids = chunk * CHUNK + tl.arange(0, CHUNK)
    row_ptr = logits_ptr + tl.load(at_ptr + i) * logits_stride
    logits = tl.load(row_ptr + token_ids, mask=token_ids < vocab, other=float("-inf"))
    tl.store(maxima_ptr + i * tl.num_programs(1) + chunk, tl.max(logits, axis=0))


@triton.jit
def _growth_so_far(bits, growth_ptr, i, num_marked, rounds):
    """Each token's logarithm of growth in the rounds that have been played; growth_ptr [rounds, n, _CLASSES]."""
    growth = tl.zeros(bits.shape, tl.float32)
    for played in range(rounds):
        classes = ((bits >> (played * _LAYERS)) & (_CLASSES - 1)).to(tl.int32)
        growth += tl.load(growth_ptr + (played * num_marked + i).to(tl.int64) * _CLASSES + classes)
    return growth


@triton.jit
def _play(sums_ptr, growth_ptr, layers):
    """torch_watermark.play_round for one row."""
    classes = tl.arange(0, _CLASSES)
    # Read where the other blocks' additions are: in L2.
    masses = tl.load(sums_ptr + classes, cache_modifier=".cg").to(tl.float64)
    masses = masses / tl.maximum(tl.sum(masses, axis=0), 1.0)
    growth = tl.full([_CLASSES], 1.0, tl.float64)
    for layer in range(_LAYERS):
        if layer < layers:
            ones = ((classes >> layer) & 1).to(tl.float64)
            factor = 1.0 + ones - tl.sum(masses * ones, axis=0)
            masses = masses * factor
            growth = growth * factor
    tl.store(growth_ptr + classes, tl.log(tl.maximum(growth, _VANISHED)).to(tl.float32))


@kernel(varying=["at_ptr", "keys_ptr", "temperature_ptr", "depths_ptr", "arrived", "num_marked", "played"])
def _round_kernel(
    logits_ptr,
    at_ptr,
    keys_ptr,  # [n] int64
    temperature_ptr,  # [n] float32
    depths_ptr,  # [n] int64
    maxima_ptr,  # [n, chunks] float32
    sums_ptr,  # [rounds, n, _CLASSES] int64, zero at first
    growth_ptr,  # [rounds, n, _CLASSES] float32
    arrived,  # [n] int32, zero before and after
    num_marked,
    played,  # rounds before this one
    vocab,
    logits_stride,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    PDL: tl.constexpr,
):
    i, chunk = tl.program_id(0), tl.program_id(1)
    release_successor(PDL)
    wait_for_predecessor(PDL)
    chunks = tl.arange(0, CHUNKS)
    exists = chunks < tl.num_programs(1)
    maxima = tl.load(maxima_ptr + i * tl.num_programs(1) + chunks, mask=exists, other=float("-inf"))
    largest = tl.maximum(tl.max(maxima, axis=0), -3.4028234663852886e38)
    token_ids = chunk * CHUNK + tl.arange(0, CHUNK)
    row_ptr = logits_ptr + tl.load(at_ptr + i) * logits_stride
    logits = tl.load(row_ptr + token_ids, mask=token_ids < vocab, other=float("-inf"))
    bits = token_bits(token_ids, tl.load(keys_ptr + i), _SYNTHID_DOMAIN)
    growth = _growth_so_far(bits, growth_ptr, i, num_marked, played)
    scores = (logits - largest) / tl.load(temperature_ptr + i)
    masses = tl.floor(tl.exp(scores + growth) * _MASS_UNIT + 0.5).to(tl.int64)
    row = (played * num_marked + i).to(tl.int64) * _CLASSES
    classes = ((bits >> (played * _LAYERS)) & (_CLASSES - 1)).to(tl.int32)
    tl.atomic_add(sums_ptr + row + classes, masses, mask=masses > 0, sem="relaxed")
    tl.debug_barrier()
    if tl.atomic_add(arrived + i, 1, sem="acq_rel") < tl.num_programs(1) - 1:
        return
    tl.store(arrived + i, 0)
    _play(sums_ptr + row, growth_ptr + row, tl.load(depths_ptr + i) - played * _LAYERS)


@kernel(varying=["at_ptr", "keys_ptr", "is_marked_ptr", "temperature_ptr", "num_marked", "rounds"])
def _grow_kernel(
    logits_ptr,
    at_ptr,
    keys_ptr,
    is_marked_ptr,  # [n] bool
    temperature_ptr,
    growth_ptr,
    num_marked,
    rounds,
    vocab,
    logits_stride,
    CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):
    i, chunk = tl.program_id(0), tl.program_id(1)
    release_successor(PDL)
    wait_for_predecessor(PDL)
    if tl.load(is_marked_ptr + i):
        token_ids = chunk * CHUNK + tl.arange(0, CHUNK)
        cells = logits_ptr + tl.load(at_ptr + i) * logits_stride + token_ids
        bits = token_bits(token_ids, tl.load(keys_ptr + i), _SYNTHID_DOMAIN)
        growth = _growth_so_far(bits, growth_ptr, i, num_marked, rounds)
        logits = tl.load(cells, mask=token_ids < vocab, other=float("-inf"))
        tl.store(cells, logits + growth * tl.load(temperature_ptr + i), mask=token_ids < vocab)


@kernel(varying=["at_ptr", "temperature_ptr", "top_k_ptr", "top_p_ptr", "min_p_ptr", "maxima_ptr"])
def _filter_kernel(
    logits_ptr,
    at_ptr,
    temperature_ptr,
    top_k_ptr,  # [n] int64
    top_p_ptr,  # [n] float32
    min_p_ptr,  # [n] float32
    maxima_ptr,
    num_chunks,
    vocab,
    logits_stride,
    TILE: tl.constexpr,
    CHUNKS: tl.constexpr,
    PDL: tl.constexpr,
):
    i = tl.program_id(0)
    release_successor(PDL)
    wait_for_predecessor(PDL)
    chunks = tl.arange(0, CHUNKS)
    maxima = tl.load(maxima_ptr + i * num_chunks + chunks, mask=chunks < num_chunks, other=float("-inf"))
    largest = tl.max(maxima, axis=0)
    inv_temperature = 1.0 / tl.load(temperature_ptr + i)
    top_k = tl.load(top_k_ptr + i).to(tl.int32)
    top_p = tl.load(top_p_ptr + i)
    min_p = tl.load(min_p_ptr + i)
    row_ptr = logits_ptr + tl.load(at_ptr + i) * logits_stride
    if ((top_k > 0) & (top_k < vocab)) | (top_p < 1.0) | (min_p > 0.0):
        cut, ties = find_kept(row_ptr, vocab, largest, inv_temperature, top_k, top_p, min_p, TILE)
        seen = 0
        for start in range(0, vocab, TILE):
            token_ids = start + tl.arange(0, TILE)
            logits = tl.load(row_ptr + token_ids, mask=token_ids < vocab, other=float("-inf"))
            depths = (largest - logits) * inv_temperature
            at_cut = (depths == cut).to(tl.int32)
            is_kept = (depths <= cut) & ((at_cut == 0) | (seen + tl.cumsum(at_cut, axis=0) <= ties))
            seen += tl.sum(at_cut, axis=0)
            tl.store(row_ptr + token_ids, float("-inf"), mask=(token_ids < vocab) & ~is_kept)


def compete(
    logits: Tensor, at: Tensor, keys: Tensor, is_marked: Tensor, temperature: Tensor, depths: Tensor, num_layers: int
) -> None:
    """As torch_watermark.compete."""
    vocab, count = logits.shape[1], at.shape[0]
    grid = (count, div_ceil(vocab, CHUNK))
    rounds = div_ceil(num_layers, ROUND_LAYERS)
    maxima = _chunk_maxima(logits, at)
    sums = torch.zeros((rounds, count, 2**ROUND_LAYERS), dtype=torch.int64, device=logits.device)
    growth = torch.empty((rounds, count, 2**ROUND_LAYERS), dtype=torch.float32, device=logits.device)
    pdl = can_launch_early(logits, True)
    for played in range(rounds):
        _round_kernel(
            grid,
            logits,
            at,
            keys,
            temperature,
            depths,
            maxima,
            sums,
            growth,
            arrival_counters(logits.device),
            count,
            played,
            vocab,
            logits.stride(0),
            CHUNK=CHUNK,
            CHUNKS=next_power_of_2(grid[1]),
            num_warps=4,
            pdl=pdl,
        )
    _grow_kernel(
        grid,
        logits,
        at,
        keys,
        is_marked,
        temperature,
        growth,
        count,
        rounds,
        vocab,
        logits.stride(0),
        CHUNK=CHUNK,
        num_warps=4,
        pdl=pdl,
    )


def mask_filtered(logits: Tensor, at: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> None:
    """As torch_core.mask_filtered; tokens deeper than 32, which no noise lets win, are masked as well."""
    num_chunks = div_ceil(logits.shape[1], CHUNK)
    _filter_kernel(
        (at.shape[0],),
        logits,
        at,
        temperature,
        top_k,
        top_p,
        min_p,
        _chunk_maxima(logits, at),
        num_chunks,
        logits.shape[1],
        logits.stride(0),
        TILE=4096,
        CHUNKS=next_power_of_2(num_chunks),
        num_warps=16,
        pdl=can_launch_early(logits, True),
    )


def _chunk_maxima(logits: Tensor, at: Tensor) -> Tensor:
    """[n, chunks] float32."""
    num_chunks = div_ceil(logits.shape[1], CHUNK)
    maxima = torch.empty((at.shape[0], num_chunks), dtype=torch.float32, device=logits.device)
    _max_kernel(
        (at.shape[0], num_chunks),
        logits,
        at,
        maxima,
        logits.shape[1],
        logits.stride(0),
        CHUNK=CHUNK,
        num_warps=4,
        pdl=can_launch_early(logits, True),
    )
    return maxima
