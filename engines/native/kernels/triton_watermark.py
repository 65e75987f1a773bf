"""Watermarks on the GPU: the kernels behind sampling/torch_watermark.py, which says what each of them means.

`_mark_kernel`, grid (marked rows, chunks of CHUNK tokens), is all of green lists and Gumbel-max: it hashes the row's
last tokens, read from the table that sampled tokens are written to, raises green logits in place, and for Gumbel rows
replaces what keys the noise of the draw. Nothing is read back, and the host need not know the tokens.

SynthID-Text takes a launch for the row's maximum, one for each round of ROUND_LAYERS layers and one that writes. In a
round every chunk adds its tokens' masses to the row's classes; the last chunk of a row to arrive plays the round. Sums
are integers, so that they do not depend on who comes first.
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
from engines.native.kernels.triton_noise import mix, random_bits
from engines.native.sampling.torch_watermark import MASS_UNIT, ROUND_LAYERS, VANISHED, MarkedRows
from engines.native.watermark import prf

CHUNK = 2048  # tokens per block
_BLOCK = tl.constexpr(1024)  # earlier contexts compared at a time

# Rows of MarkedRows.ints, and the schemes, as kernels need them.
_AT, _SCHEME, _KEY, _WIDTH, _NUM_PROMPT_TOKENS, _THRESHOLD = (tl.constexpr(i) for i in range(6))
_GREEN_LIST, _GREEN_LIST_SELF, _GUMBEL = (tl.constexpr(i) for i in range(3))
_INIT_LOW, _INIT_HIGH = tl.constexpr(prf.CONTEXT_INIT_LOW), tl.constexpr(prf.CONTEXT_INIT_HIGH)
_GREEN_DOMAIN, _GUMBEL_DOMAIN = tl.constexpr(prf.GREEN_DOMAIN), tl.constexpr(prf.GUMBEL_DOMAIN)
_SYNTHID_DOMAIN = tl.constexpr(prf.SYNTHID_DOMAIN)
_SELF_HASH_MULTIPLIER = tl.constexpr(prf.SELF_HASH_MULTIPLIER)
_CLASSES = tl.constexpr(2**ROUND_LAYERS)
_LAYERS = tl.constexpr(ROUND_LAYERS)
_MASS_UNIT = tl.constexpr(MASS_UNIT)
_VANISHED = tl.constexpr(VANISHED)


@triton.jit
def _fold(key, tokens_ptr, width, INIT: tl.constexpr):
    h = mix((key & 0xFFFFFFFF).to(tl.uint32) ^ INIT)
    h = mix(h * 5 + ((key >> 32) & 0xFFFFFFFF).to(tl.uint32))
    for i in range(width):
        h = mix(h * 5 + tl.load(tokens_ptr + i).to(tl.uint32))
    return h


@triton.jit
def _context_key(key, tokens_ptr, width):
    """prf.context_key of the `width` tokens from tokens_ptr on, as int64."""
    low = _fold(key, tokens_ptr, width, _INIT_LOW)
    high = _fold(key, tokens_ptr, width, _INIT_HIGH)
    return low.to(tl.int64) | (high.to(tl.int64) << 32)


@triton.jit
def _bits(token_ids, context_key, DOMAIN: tl.constexpr):
    return random_bits(token_ids, context_key, tl.full((), DOMAIN, tl.int64))


@triton.jit
def _is_fresh(tokens_ptr, length, num_prompt_tokens, width):
    """Whether the last `width` generated tokens exist and were not the context of an earlier generated token."""
    repeats = tl.zeros([_BLOCK], tl.int32)
    for start in range(num_prompt_tokens + width, length, _BLOCK):
        columns = start + tl.arange(0, _BLOCK)
        exists = columns < length
        same = exists
        for back in range(1, width + 1):
            same = same & (
                tl.load(tokens_ptr + columns - back, mask=exists, other=-1) == tl.load(tokens_ptr + length - back)
            )
        repeats += same.to(tl.int32)
    return (length - num_prompt_tokens >= width) & (tl.sum(repeats, axis=0) == 0)


@triton.jit
def _load_row(i, table_ptr, rows_ptr, lengths_ptr, ints_ptr, num_marked, table_stride):
    """Batch position, the row's tokens, how many are known, the key and the context's width."""
    at = tl.load(ints_ptr + _AT * num_marked + i)
    tokens_ptr = table_ptr + tl.load(rows_ptr + at) * table_stride
    length = tl.load(lengths_ptr + at)
    key = tl.load(ints_ptr + _KEY * num_marked + i)
    width = tl.load(ints_ptr + _WIDTH * num_marked + i)
    return at, tokens_ptr, length, key, width


@kernel(varying=["rows_ptr", "lengths_ptr", "ints_ptr", "deltas_ptr", "seeds_ptr", "positions_ptr", "num_marked"])
def _mark_kernel(
    logits_ptr,  # [B, vocab] float32, row stride logits_stride
    table_ptr,  # [max_rows, max_len] int32, row stride table_stride
    rows_ptr,  # [B] int64
    lengths_ptr,  # [B] int64
    ints_ptr,  # [6, num_marked] int64, as in MarkedRows
    deltas_ptr,  # [num_marked] float32
    seeds_ptr,  # [B] int64
    positions_ptr,  # [B] int64
    num_marked,
    vocab,
    logits_stride,
    table_stride,
    CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):
    i, chunk = tl.program_id(0), tl.program_id(1)
    release_successor(PDL)
    wait_for_predecessor(PDL)
    scheme = tl.load(ints_ptr + _SCHEME * num_marked + i)
    at, tokens_ptr, length, key, width = _load_row(
        i, table_ptr, rows_ptr, lengths_ptr, ints_ptr, num_marked, table_stride
    )
    if scheme == _GUMBEL:
        if chunk == 0:
            num_prompt_tokens = tl.load(ints_ptr + _NUM_PROMPT_TOKENS * num_marked + i)
            if _is_fresh(tokens_ptr, length, num_prompt_tokens, width):
                tl.store(seeds_ptr + at, _context_key(key, tokens_ptr + length - width, width))
                tl.store(positions_ptr + at, tl.full((), _GUMBEL_DOMAIN, tl.int64))
    elif length >= width:
        token_ids = chunk * CHUNK + tl.arange(0, CHUNK)
        if scheme == _GREEN_LIST_SELF:
            bits = tl.full([CHUNK], 0xFFFFFFFF, tl.uint32)
            for back in range(1, width + 1):
                one = _bits(token_ids, _context_key(key, tokens_ptr + length - back, 1), _GREEN_DOMAIN)
                bits = tl.minimum(bits, one)
            bits = mix(bits * _SELF_HASH_MULTIPLIER)
        else:
            bits = _bits(token_ids, _context_key(key, tokens_ptr + length - width, width), _GREEN_DOMAIN)
        is_green = bits.to(tl.int64) < tl.load(ints_ptr + _THRESHOLD * num_marked + i)
        cells = logits_ptr + at * logits_stride + token_ids
        mask = (token_ids < vocab) & is_green
        logits = tl.load(cells, mask=mask, other=0.0)
        tl.store(cells, logits + tl.load(deltas_ptr + i), mask=mask)


@kernel(varying=["rows_ptr", "lengths_ptr", "ints_ptr", "keys_ptr", "is_fresh_ptr", "num_marked"])
def _context_kernel(
    table_ptr,
    rows_ptr,
    lengths_ptr,
    ints_ptr,
    keys_ptr,  # [num_marked] int64
    is_fresh_ptr,  # [num_marked] bool
    num_marked,
    table_stride,
    PDL: tl.constexpr,
):
    i = tl.program_id(0)
    release_successor(PDL)
    wait_for_predecessor(PDL)
    _at, tokens_ptr, length, key, width = _load_row(
        i, table_ptr, rows_ptr, lengths_ptr, ints_ptr, num_marked, table_stride
    )
    num_prompt_tokens = tl.load(ints_ptr + _NUM_PROMPT_TOKENS * num_marked + i)
    is_fresh = _is_fresh(tokens_ptr, length, num_prompt_tokens, width)
    width = tl.minimum(width, length)  # a key that nobody uses, from tokens that exist
    tl.store(keys_ptr + i, _context_key(key, tokens_ptr + length - width, width))
    tl.store(is_fresh_ptr + i, is_fresh)


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
    bits = _bits(token_ids, tl.load(keys_ptr + i), _SYNTHID_DOMAIN)
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
        bits = _bits(token_ids, tl.load(keys_ptr + i), _SYNTHID_DOMAIN)
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


def mark_tokens(
    logits: Tensor,
    token_table: Tensor,
    rows: Tensor,
    lengths: Tensor,
    marked: MarkedRows,
    seeds: Tensor,
    positions: Tensor,
) -> None:
    """As torch_watermark.mark_tokens."""
    vocab, count = logits.shape[1], len(marked.schemes)
    _mark_kernel(
        (count, div_ceil(vocab, CHUNK)),
        logits,
        token_table,
        rows,
        lengths,
        marked.ints,
        marked.deltas,
        seeds,
        positions,
        count,
        vocab,
        logits.stride(0),
        token_table.stride(0),
        CHUNK=CHUNK,
        num_warps=4,
        pdl=can_launch_early(logits, True),
    )


def fresh_contexts(token_table: Tensor, rows: Tensor, lengths: Tensor, marked: MarkedRows) -> tuple[Tensor, Tensor]:
    """As torch_watermark.fresh_contexts."""
    count = len(marked.schemes)
    keys = torch.empty(count, dtype=torch.int64, device=token_table.device)
    is_fresh = torch.empty(count, dtype=torch.bool, device=token_table.device)
    _context_kernel(
        (count,),
        token_table,
        rows,
        lengths,
        marked.ints,
        keys,
        is_fresh,
        count,
        token_table.stride(0),
        num_warps=4,
        pdl=can_launch_early(token_table, True),
    )
    return keys, is_fresh


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
