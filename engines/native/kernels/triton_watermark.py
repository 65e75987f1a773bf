"""Watermarks on the GPU: the kernels behind sampling/torch_watermark.py, which says what each of them means.

`_mark_kernel`, grid (marked rows, chunks of CHUNK tokens), is all of green lists and Gumbel-max: it hashes the row's
last tokens, read from the table that sampled tokens are written to, raises green logits in place, and for Gumbel rows
replaces what keys the noise of the draw. Nothing is read back, and the host need not know the tokens. What SynthID-Text
does beyond keying its contexts is in triton_tournament.py.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from engines.native.kernels.triton_kernel import kernel
from engines.native.kernels.triton_launch import (
    can_launch_early,
    div_ceil,
    release_successor,
    wait_for_predecessor,
)
from engines.native.kernels.triton_noise import mix, random_bits
from engines.native.sampling.torch_watermark import MarkedRows
from engines.native.watermark import prf

CHUNK = 2048  # tokens per block
_BLOCK = tl.constexpr(1024)  # earlier contexts compared at a time

# Rows of MarkedRows.ints, and the schemes, as kernels need them.
_AT, _SCHEME, _KEY, _WIDTH, _NUM_PROMPT_TOKENS, _THRESHOLD = (tl.constexpr(i) for i in range(6))
_GREEN_LIST, _GREEN_LIST_SELF, _GUMBEL = (tl.constexpr(i) for i in range(3))
_INIT_LOW, _INIT_HIGH = tl.constexpr(prf.CONTEXT_INIT_LOW), tl.constexpr(prf.CONTEXT_INIT_HIGH)
_GREEN_DOMAIN, _GUMBEL_DOMAIN = tl.constexpr(prf.GREEN_DOMAIN), tl.constexpr(prf.GUMBEL_DOMAIN)
_SELF_HASH_MULTIPLIER = tl.constexpr(prf.SELF_HASH_MULTIPLIER)


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
def token_bits(token_ids, context_key, DOMAIN: tl.constexpr):
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
                one = token_bits(token_ids, _context_key(key, tokens_ptr + length - back, 1), _GREEN_DOMAIN)
                bits = tl.minimum(bits, one)
            bits = mix(bits * _SELF_HASH_MULTIPLIER)
        else:
            bits = token_bits(token_ids, _context_key(key, tokens_ptr + length - width, width), _GREEN_DOMAIN)
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
