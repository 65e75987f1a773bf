"""Top-k, top-p and min-p on the GPU for one row a block, without a sort, and the draw among what they keep.

Tokens are seen as depths, (max - logit) / temperature >= 0. Those that can still matter are gathered into a list by
rising id, from the groups of tokens whose maximum is near enough. For top-k as many groups as tokens are wanted hold
them all. For top-p alone the list is tried with few groups and then with most of them, and does when its weight reaches
the target.

A short list is ranked by comparing all pairs. In a longer one, or in the whole row where the list does not do (a flat
distribution), what top-k and top-p keep is "the tokens up to some depth, and of those exactly there the lowest ids,
until their weights reach a target": that depth is found by bisection, each probe snapped to a depth that occurs. Last,
the kept token with the largest noise - depth wins.
"""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false, reportAssignmentType=false

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
def _gather(row_ptr, list_ptr, list_ids_ptr, group_list_ptr, group_depths, vocab, largest, inv_temperature, limit,
            SHORT_LIST: tl.constexpr, TILE: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    """Writes the tokens no deeper than `limit`, by rising id, as far as they fit; how many there are, and their weight.

    group_depths [GROUPS] are those of the groups' maxima, +inf where there is no group.
    """
    near = group_depths <= limit
    tl.debug_barrier()  # a list that was tried before has been read by now
    tl.store(group_list_ptr + tl.cumsum(near.to(tl.int32), axis=0) - 1, tl.arange(0, GROUPS), mask=near)
    num_near = tl.sum(near.to(tl.int32), axis=0)
    tl.debug_barrier()
    found = 0
    weight = tl.zeros([TILE], tl.float32)
    for start in range(0, num_near * GROUP, TILE):
        entries = start + tl.arange(0, TILE)
        exists = entries < num_near * GROUP
        ids = tl.load(group_list_ptr + entries // GROUP, mask=exists, other=0) * GROUP + entries % GROUP
        raw = tl.load(row_ptr + ids, mask=exists & (ids < vocab), other=float("-inf"))
        depths = (largest - raw.to(tl.float32)) * inv_temperature
        matters = depths <= limit
        slots = found + tl.cumsum(matters.to(tl.int32), axis=0) - 1
        fits = matters & (slots < SHORT_LIST)
        tl.store(list_ptr + slots, raw, mask=fits)
        tl.store(list_ids_ptr + slots, ids, mask=fits)
        found += tl.sum(matters.to(tl.int32), axis=0)
        weight += _weigh(depths, matters, False)
    tl.debug_barrier()
    return found, tl.sum(weight, axis=0)


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
def _near_bound(wanted, group_depths, limit):
    """A depth within which `wanted` groups have their maximum, so at least as many tokens lie; `limit` if fewer do."""
    low, high = 0.0, limit
    if tl.sum((group_depths <= limit).to(tl.int32), axis=0) >= wanted:
        for _ in range(12):
            middle = (low + high) * 0.5
            if tl.sum((group_depths <= middle).to(tl.int32), axis=0) >= wanted:
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
def _draw(depths, ids, kept, seed, position, COMPILED: tl.constexpr):
    """The kept entry with the largest noise - depth: (that, its id)."""
    score = tl.where(kept, gumbel(ids, seed, position, COMPILED) - depths, float("-inf"))
    best, where = tl.max(score, axis=0, return_indices=True)
    return best, tl.sum(tl.where(tl.arange(0, ids.shape[0]) == where, ids, 0), axis=0)


@triton.jit
def _choose_ranked(list_ptr, list_ids_ptr, count, largest, inv_temperature, top_k, top_p, whole_mass, seed, position,
                   PAIRS: tl.constexpr, COMPILED: tl.constexpr):  # fmt: skip
    """The draw from a list of at most PAIRS tokens. top_k: 0 = off; whole_mass: what top_p is a share of, if not what
    top-k leaves (0)."""
    OTHERS: tl.constexpr = 64
    depths, ids = _load_depths(0, count, list_ptr, list_ids_ptr, True, largest, inv_temperature, PAIRS)
    places = tl.arange(0, PAIRS)
    rank = tl.zeros([PAIRS], tl.int32)
    mass_before = tl.zeros([PAIRS], tl.float32)
    for start in range(0, count, OTHERS):
        other_depths, _ids = _load_depths(start, count, list_ptr, list_ids_ptr, True, largest, inv_temperature, OTHERS)
        other_places = start + tl.arange(0, OTHERS)
        is_tied = (other_depths[None, :] == depths[:, None]) & (other_places[None, :] < places[:, None])
        is_before = (other_depths[None, :] < depths[:, None]) | is_tied
        rank += tl.sum(is_before.to(tl.int32), axis=1)
        mass_before += tl.sum(tl.where(is_before, tl.exp(-other_depths)[None, :], 0.0), axis=1)
    kept = places < count
    if top_k > 0:
        kept = kept & (rank < top_k)
    if top_p < 1.0:
        kept_mass = tl.where(whole_mass > 0.0, whole_mass, tl.sum(_weigh(depths, kept, False), axis=0))
        kept = kept & ((mass_before < top_p * kept_mass) | (rank == 0))
    _best, token = _draw(depths, ids, kept, seed, position, COMPILED)
    return token


@triton.jit
def _find_kept(source, list_ids_ptr, use_list, count, found, vocab, largest, mass, inv_temperature, limit, top_k,
               top_p, is_top_p_alone, TILE: tl.constexpr):  # fmt: skip
    """(cut, ties): kept are the tokens of depth below `cut`, and of those exactly there the `ties` lowest ids."""
    # At first everything within min-p.
    cut, ties, kept_mass = limit, vocab, mass
    if not is_top_p_alone:
        kept_mass, cut = _mass_before(limit, count, source, list_ids_ptr, use_list, largest, inv_temperature, TILE)
        if (top_k > 0) & (top_k < found):
            cut, before = _find_cut(
                top_k.to(tl.float32), cut, count, source, list_ids_ptr, use_list, largest, inv_temperature, True, TILE
            )
            ties = top_k - before.to(tl.int32)
            kept_mass, _cut = _mass_before(cut, count, source, list_ids_ptr, use_list, largest, inv_temperature, TILE)
            at_cut = _count_at(cut, count, source, list_ids_ptr, use_list, largest, inv_temperature, TILE)
            kept_mass -= tl.maximum(at_cut - ties, 0).to(tl.float32) * tl.exp(-cut)
    if top_p < 1.0:
        target = top_p * kept_mass
        p_cut, before = _find_cut(
            target, cut, count, source, list_ids_ptr, use_list, largest, inv_temperature, False, TILE
        )
        p_ties = tl.maximum(tl.ceil((target - before) / tl.exp(-p_cut)), 1.0).to(tl.int32)
        ties = tl.where(p_cut == cut, tl.minimum(ties, p_ties), p_ties)
        cut = p_cut
    return cut, ties


@triton.jit
def find_kept(row_ptr, vocab, largest, inv_temperature, top_k, top_p, min_p, TILE: tl.constexpr):
    """(cut, ties) of what min-p, then top-k, then top-p keep of a whole row, whatever its distribution."""
    limit = _DEEPEST
    if min_p > 0.0:
        limit = tl.minimum(_DEEPEST, -tl.log(min_p))
    if top_k >= vocab:
        top_k = 0
    return _find_kept(row_ptr, row_ptr.to(tl.pointer_type(tl.int32)), False, vocab, vocab, vocab, largest, 0.0,
                      inv_temperature, limit, top_k, top_p, False, TILE)  # fmt: skip


@triton.jit
def _choose_bisected(source, list_ids_ptr, use_list, count, found, vocab, largest, mass, inv_temperature, limit, top_k,
                     top_p, is_top_p_alone, seed, position, TILE: tl.constexpr, COMPILED: tl.constexpr):  # fmt: skip
    """The draw from a list or row of any length. found: how many tokens the bound that holds all of top_k lets in."""
    cut, ties = _find_kept(source, list_ids_ptr, use_list, count, found, vocab, largest, mass, inv_temperature, limit,
                           top_k, top_p, is_top_p_alone, TILE)  # fmt: skip
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
            tile_best, tile_id = _draw(depths, ids, kept, seed, position, COMPILED)
            if tile_best > best:
                best = tile_best
                best_id = tile_id
    return best_id


@triton.jit
def choose_filtered(
    row_ptr, list_ptr, list_ids_ptr, group_list_ptr, group_max_ptr, num_groups, vocab, largest, mass, inv_temperature,
    top_k, top_p, min_p, seed, position, FEW_GROUPS: tl.constexpr, PAIRS: tl.constexpr, SHORT_LIST: tl.constexpr,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, TILE: tl.constexpr, COMPILED: tl.constexpr,
):  # fmt: skip
    """The token drawn from what min-p, then top-k, then top-p keep. mass: sum of exp(-depth) over the whole row."""
    limit = _DEEPEST
    if min_p > 0.0:
        limit = tl.minimum(_DEEPEST, -tl.log(min_p))
    if top_k >= vocab:
        top_k = 0
    is_top_p_alone = (top_k <= 0) & (min_p <= 0.0)
    groups = tl.arange(0, GROUPS)
    maxima = tl.load(group_max_ptr + groups, mask=groups < num_groups, other=float("-inf"))
    group_depths = (largest - maxima) * inv_temperature

    # How many groups surely hold what is kept: as many as top_k, or all within min-p.
    wanted = tl.where(top_k > 0, top_k, GROUPS)
    target, most = 0.0, 0
    if is_top_p_alone:
        # No group surely does, but nine groups of ten, of tokens scattered at random, hold about 2 tokens of 100.
        wanted, target, most = FEW_GROUPS, top_p * mass, num_groups * 9 // 10
    found = SHORT_LIST + 1
    does = False
    tried = target >= SHORT_LIST  # a token weighs 1 at most
    while not tried:
        bound = _near_bound(wanted, group_depths, limit)
        found, weight = _gather(row_ptr, list_ptr, list_ids_ptr, group_list_ptr, group_depths, vocab, largest,
                                inv_temperature, bound, SHORT_LIST, TILE, GROUPS, GROUP)  # fmt: skip
        does = (found <= SHORT_LIST) & (weight >= target)
        tried = does | (found > SHORT_LIST) | (wanted >= most)
        wanted = most

    if does & (found <= PAIRS):
        return _choose_ranked(list_ptr, list_ids_ptr, found, largest, inv_temperature, top_k, top_p,
                              tl.where(is_top_p_alone, mass, 0.0), seed, position, PAIRS, COMPILED)  # fmt: skip
    else:
        return _choose_bisected(tl.where(does, list_ptr, row_ptr), list_ids_ptr, does, tl.where(does, found, vocab),
                                found, vocab, largest, mass, inv_temperature, limit, top_k, top_p, is_top_p_alone,
                                seed, position, TILE, COMPILED)  # fmt: skip
