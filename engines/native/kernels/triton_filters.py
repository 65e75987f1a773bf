"""Top-k, top-p and min-p on the GPU for one row a block, without a sort, and the draw among what they keep.

Tokens are seen as depths, (max - logit) / temperature >= 0. Those that can still matter (a bound follows from the
groups' maxima for top-k, from the mass for top-p) are gathered into a short list, by rising id. What top-k and top-p
keep is always "the tokens up to some depth, and of those exactly there the lowest ids, until their weights reach a
target": the depth is found by bisection, each probe snapped to a depth that occurs. Should the list not fit (a flat
distribution), the same passes run over the whole row. Last, the kept token with the largest noise - depth wins.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

import triton
import triton.language as tl

from engines.native.kernels.triton_noise import gumbel

_DEEPEST = tl.constexpr(32.0)  # a token deeper than this cannot win: the noise spans 25.7


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
def _count_at(depth, count, source, list_ids_ptr, use_list, largest, inv_temperature, TILE: tl.constexpr):
    total = tl.zeros([TILE], tl.int32)
    for start in range(0, count, TILE):
        depths, _ = _load_depths(start, count, source, list_ids_ptr, use_list, largest, inv_temperature, TILE)
        total += (depths == depth).to(tl.int32)
    return tl.sum(total, axis=0)


@triton.jit
def choose_filtered(
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
            score = tl.where(kept, gumbel(ids, seed, position, COMPILED) - depths, float("-inf"))
            tile_best, where = tl.max(score, axis=0, return_indices=True)
            if tile_best > best:
                best = tile_best
                best_id = tl.sum(tl.where(tl.arange(0, TILE) == where, ids, 0), axis=0)
    return best_id
