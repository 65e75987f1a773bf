"""The sampler's core on the GPU: one token per row of logits, in two kernels, nothing sorted, nothing read back.

The CUDA twin of sampling/torch_core.py, where the meaning of every argument is written down; the rules for ties are
those of sampling/sampler.py, the noise is defined by sampling/noise.py. It knows nothing of requests, penalties or
masks: those have been applied to the logits.

`_scan_kernel`, grid (rows, chunks of CHUNK tokens), reads the logits once. For each chunk it leaves the largest logit
and where it is, the sum of exponentials, and, for rows without top-k, top-p or min-p, the best of logit / temperature
+ noise. `_choose_kernel`, grid (rows,), combines the chunks. For greedy and unfiltered rows that is all.

For filtered rows it then looks at tokens as depths, (max - logit) / temperature >= 0, and gathers those that can still
matter (a bound follows from the chunks' maxima for top-k, from the mass for top-p) into a short list. What top-k and
top-p keep is always "the tokens up to some depth, and of those exactly there the lowest ids, until their weights reach
a target": the depth is found by bisection, each probe snapped to a depth that occurs. Should the list not fit (a flat
distribution), the same passes run over the whole row. Last, the kept token with the largest noise - depth wins.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from engines.native.kernels.triton_launch import can_launch_early, release_successor, wait_for_predecessor

CHUNK = 4096  # tokens per block of the scan
GROUP = 128  # tokens per maximum that the scan leaves
SHORT_LIST = 4096  # tokens of a filtered row that fit the list

_DEEPEST = tl.constexpr(32.0)  # a token deeper than this cannot win: the noise spans 25.7


@triton.jit
def _mix(h):
    h = h ^ (h >> 16)
    h = h * 0x85EBCA6B
    h = h ^ (h >> 13)
    h = h * 0xC2B2AE35
    return h ^ (h >> 16)


@triton.jit
def _noise_key(seed, position, INIT: tl.constexpr):
    """seed, position: int64 scalars. The words are those of sampling/noise.py, in wrapping uint32."""
    low = (seed & 0xFFFFFFFF).to(tl.uint32)
    high = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    h = _mix(low ^ INIT)
    h = _mix(h * 5 + high)
    return _mix(h * 5 + (position & 0xFFFFFFFF).to(tl.uint32))


@triton.jit
def _log(x, COMPILED: tl.constexpr):
    """Natural logarithm; where compiled, the GPU's own approximation, within 2e-7 absolute or relative."""
    if COMPILED:
        return libdevice.fast_logf(x)
    else:
        return tl.log(x)


@triton.jit
def _gumbel(token_ids, seed, position, COMPILED: tl.constexpr):
    """sampling.noise.gumbel_noise of one row: token_ids int32, float32 result."""
    key_a = _noise_key(seed, position, 0x243F6A88)
    key_b = _noise_key(seed, position, 0x85A308D3)
    bits = _mix(_mix((token_ids.to(tl.uint32) * 0x9E3779B1) ^ key_a) ^ key_b)
    u = tl.minimum((bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.99999994)
    # -log1p(-u): where 1 - u would round, by its series, whose next term is below 1e-9 of the sum.
    series = u * (1.0 + u * (0.5 + u * (0.33333333 + u * (0.25 + u * (0.2 + u * 0.16666667)))))
    return -_log(tl.where(u < 0.03125, series, -_log(1.0 - u, COMPILED)), COMPILED)


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
        noise = _gumbel(ids, tl.load(seeds_ptr + row), tl.load(positions_ptr + row), COMPILED)
        best, where = tl.max(noise + (logits - base) * (1.0 / temperature), axis=0, return_indices=True)
        tl.store(chunk_best_ptr + cell, best)
        tl.store(chunk_id_ptr + cell, chunk * CHUNK + where)
    else:
        tl.store(chunk_best_ptr + cell, 0.0)
        tl.store(chunk_id_ptr + cell, chunk * CHUNK + tl.argmax(logits, axis=0))


@triton.jit
def _load_depths(start, count, source, list_ids_ptr, use_list, largest, inv_temperature, TILE: tl.constexpr):
    """Depths and token ids of entries start..start+TILE of the short list, or of the row itself; +inf past the end."""
    entries = start + tl.arange(0, TILE)
    exists = entries < count
    logits = tl.load(source + entries, mask=exists, other=float("-inf")).to(tl.float32)
    listed = tl.load(list_ids_ptr + entries, mask=entries < tl.where(use_list, count, 0), other=0)
    ids = tl.where(use_list, listed, entries)
    return tl.where(exists, (largest - logits) * inv_temperature, float("inf")), ids


@triton.jit
def _gather(row_ptr, list_ptr, list_ids_ptr, vocab, largest, inv_temperature, limit, SHORT_LIST: tl.constexpr,
            TILE: tl.constexpr):  # fmt: skip
    """Writes the tokens no deeper than `limit`, by rising id, as far as they fit; returns how many there are."""
    found = 0
    for start in tl.range(0, vocab, TILE, num_stages=3):
        ids = start + tl.arange(0, TILE)
        raw = tl.load(row_ptr + ids, mask=ids < vocab, other=float("-inf"))
        matters = ((largest - raw.to(tl.float32)) * inv_temperature <= limit) & (ids < vocab)
        here = tl.sum(matters.to(tl.int32), axis=0)
        if here > 0:
            slots = found + tl.cumsum(matters.to(tl.int32), axis=0) - 1
            fits = matters & (slots < SHORT_LIST)
            tl.store(list_ptr + slots, raw, mask=fits)
            tl.store(list_ids_ptr + slots, ids, mask=fits)
            found += here
    tl.debug_barrier()
    return found


@triton.jit
def _weigh(depths, within, COUNT: tl.constexpr):
    """1 (COUNT) or exp(-depth) for the entries that are `within`, else 0."""
    return tl.where(within, 1.0 if COUNT else tl.exp(-depths), 0.0)


@triton.jit
def _find_cut(target, deepest, count, source, list_ids_ptr, use_list, largest, inv_temperature, COUNT: tl.constexpr,
              TILE: tl.constexpr):  # fmt: skip
    """The smallest occurring depth up to which the weights reach `target`, or else `deepest`; and the weight before it.

    Weights are 1 (COUNT) or exp(-depth). Both ends of the bracket are depths that occur, 0 and `deepest` at first.
    """
    low, high = 0.0, deepest
    before = 0.0
    while low < high:
        middle = low + (high - low) * 0.5
        if middle >= high:
            middle = low
        weight = tl.zeros([TILE], tl.float32)
        shallower = tl.full([TILE], 0.0, tl.float32)
        deeper = tl.full([TILE], float("inf"), tl.float32)
        for start in range(0, count, TILE):
            depths, _ = _load_depths(start, count, source, list_ids_ptr, use_list, largest, inv_temperature, TILE)
            within = depths <= middle
            weight += _weigh(depths, within, COUNT)
            shallower = tl.where(within, tl.maximum(shallower, depths), shallower)
            deeper = tl.where(within, deeper, tl.minimum(deeper, depths))
        total = tl.sum(weight, axis=0)
        if total >= target:
            high = tl.max(shallower, axis=0)
        else:
            low = tl.minimum(tl.min(deeper, axis=0), high)
            before = total
    return high, before


@triton.jit
def _mass_before(depth, count, source, list_ids_ptr, use_list, largest, inv_temperature, TILE: tl.constexpr):
    """(sum of exp(-depth), greatest depth) of the entries no deeper than `depth`."""
    mass = tl.zeros([TILE], tl.float32)
    deepest = tl.zeros([TILE], tl.float32)
    for start in range(0, count, TILE):
        depths, _ = _load_depths(start, count, source, list_ids_ptr, use_list, largest, inv_temperature, TILE)
        mass += _weigh(depths, depths <= depth, False)
        deepest = tl.where(depths <= depth, tl.maximum(deepest, depths), deepest)
    return tl.sum(mass, axis=0), tl.max(deepest, axis=0)


@triton.jit
def _top_k_bound(top_k, group_max_ptr, num_groups, largest, inv_temperature, deepest, GROUPS: tl.constexpr):
    """A depth that at least top_k tokens do not exceed: as many groups have their maximum within it."""
    groups = tl.arange(0, GROUPS)
    maxima = tl.load(group_max_ptr + groups, mask=groups < num_groups, other=float("-inf"))
    depths = (largest - maxima) * inv_temperature
    low, high = 0.0, deepest
    if tl.sum((depths <= deepest).to(tl.int32), axis=0) >= top_k:
        for _ in range(14):
            middle = (low + high) * 0.5
            if tl.sum((depths <= middle).to(tl.int32), axis=0) >= top_k:
                high = middle
            else:
                low = middle
    return high


@triton.jit
def _choose_filtered(
    row_ptr, list_ptr, list_ids_ptr, group_max_ptr, num_groups, vocab, largest, mass, inv_temperature, top_k, top_p,
    min_p, seed, position, SHORT_LIST: tl.constexpr, GROUPS: tl.constexpr, TILE: tl.constexpr,
    COMPILED: tl.constexpr,
):  # fmt: skip
    """The token drawn from what min-p, then top-k, then top-p keep. mass: sum of exp(-depth) over the whole row."""
    limit = _DEEPEST
    if min_p > 0.0:
        limit = tl.minimum(_DEEPEST, -tl.log(min_p))
        mass = 1.0  # that of the tokens within min-p is not known yet, but the first alone weighs 1
    bound = limit
    has_top_k = (top_k > 0) & (top_k < vocab)
    if has_top_k:
        bound = _top_k_bound(top_k, group_max_ptr, num_groups, largest, inv_temperature, limit, GROUPS)
    elif top_p < 1.0:
        # The tokens beyond this depth weigh less together than top-p leaves out, so they are none of its.
        bound = tl.minimum(limit, tl.maximum(tl.log(vocab / ((1.0 - top_p) * mass)), 0.0))
    found = _gather(row_ptr, list_ptr, list_ids_ptr, vocab, largest, inv_temperature, bound, SHORT_LIST, TILE)
    use_list = found <= SHORT_LIST
    source = tl.where(use_list, list_ptr, row_ptr)
    count = tl.where(use_list, found, vocab)

    # Kept: depth < cut, and of those at the cut the `ties` lowest ids. At first everything within min-p.
    _mass, cut = _mass_before(limit, count, source, list_ids_ptr, use_list, largest, inv_temperature, TILE)
    ties = vocab
    if has_top_k & (top_k < found):
        cut, before = _find_cut(
            top_k.to(tl.float32), cut, count, source, list_ids_ptr, use_list, largest, inv_temperature, True, TILE
        )
        ties = top_k - before.to(tl.int32)
    if top_p < 1.0:
        kept_mass, _deepest_kept = _mass_before(
            cut, count, source, list_ids_ptr, use_list, largest, inv_temperature, TILE
        )
        tie_mass = tl.exp(-cut)
        at_cut = _count_at(cut, count, source, list_ids_ptr, use_list, largest, inv_temperature, TILE)
        kept_mass -= tl.maximum(at_cut - ties, 0).to(tl.float32) * tie_mass
        if not has_top_k and min_p <= 0.0:
            kept_mass = mass
        target = top_p * kept_mass
        p_cut, before = _find_cut(
            target, cut, count, source, list_ids_ptr, use_list, largest, inv_temperature, False, TILE
        )
        p_ties = tl.maximum(tl.ceil((target - before) / tl.exp(-p_cut)), 1.0).to(tl.int32)
        ties = tl.where(p_cut == cut, tl.minimum(ties, p_ties), p_ties)
        cut = p_cut

    best, best_id = float("-inf"), 0
    seen = 0
    for start in range(0, count, TILE):
        depths, ids = _load_depths(start, count, source, list_ids_ptr, use_list, largest, inv_temperature, TILE)
        at_cut = (depths == cut).to(tl.int32)
        here = tl.sum(at_cut, axis=0)
        kept = depths <= cut
        if seen + here > ties:
            kept = kept & ((at_cut == 0) | (seen + tl.cumsum(at_cut, axis=0) <= ties))
        seen += here
        if tl.max(kept.to(tl.int32), axis=0) > 0:
            score = tl.where(kept, _gumbel(ids, seed, position, COMPILED) - depths, float("-inf"))
            tile_best, where = tl.max(score, axis=0, return_indices=True)
            if tile_best > best:
                best = tile_best
                best_id = tl.sum(tl.where(tl.arange(0, TILE) == where, ids, 0), axis=0)
    return best_id


@triton.jit
def _count_at(depth, count, source, list_ids_ptr, use_list, largest, inv_temperature, TILE: tl.constexpr):
    total = tl.zeros([TILE], tl.int32)
    for start in range(0, count, TILE):
        depths, _ = _load_depths(start, count, source, list_ids_ptr, use_list, largest, inv_temperature, TILE)
        total += (depths == depth).to(tl.int32)
    return tl.sum(total, axis=0)


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
        token = _choose_filtered(
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
