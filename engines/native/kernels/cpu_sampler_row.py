"""What the sampler does within one row of logits on the CPU: what is kept, and which kept token is drawn. numba.

Owns the arithmetic; threads and batches are cpu_sampler.py's. The order of the passes and the rules for ties are in
sampling/sampler.py, the noise is defined by sampling/noise.py.

Nothing is sorted. A row's tokens are seen as depths, (max - logit) / temperature >= 0. The first scan keeps only
tokens that can still matter (the `_limit` functions), in the order of their ids. What top-k, top-p and typical-p keep
is then always "the tokens up to some depth, and of those exactly there the lowest ids, until their weights reach a
target": `_keep_prefix` finds that depth by bisection over the bit patterns of the depths, which order as the floats do
because none is negative. The draw hashes every survivor but takes logarithms only of the few whose noise could win.

Types are spelled out in every expression, since one float64 literal would halve the vector width. Sums of weights are
float64, so that the order of addition cannot move a cut by more than an input's own rounding.
"""

# pyright: reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false

import numba
import numpy as np

_f32, _i32, _u32, _f64 = np.float32, np.int32, np.uint32, np.float64

# Reassociation lets sums use vector registers. Infinities and NaN keep their meaning: logits of -inf are ordinary.
_FAST = {"reassoc", "nsz", "contract"}

# Tokens deeper than this cannot win: the noise spans 25.7. Their mass, 1.3e-14 each, is below what float32 resolves.
_DEEPEST = _f32(32.0)

_LN2 = _f32(0.6931472)
_BOUND_SLACK = _f32(1e-3)  # rounding of the upper bound on a score, generously


def _helper(**options):
    """Compiled into kernels only, so it needs no wrapper for Python and no cache of its own."""
    return numba.njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, **options)


# --- scans over one row -----------------------------------------------------------------------------------------------


@_helper()
def _max_key(keys):
    """Largest of the floats whose bits are given, as the integer that orders like them; vectorizes, unlike a float."""
    largest = _i32(-(2**31))
    for i in range(keys.size):
        key = _i32(keys[i] ^ ((keys[i] >> _i32(31)) & _i32(0x7FFFFFFF)))
        largest = key if key > largest else largest
    return largest


@_helper()
def row_max(row):
    key = _max_key(row.view(np.int32))
    return np.int32(key ^ ((key >> _i32(31)) & _i32(0x7FFFFFFF))).view(np.float32)


@_helper()
def _argmax(row):
    largest = row_max(row)
    for i in range(row.size):
        if row[i] == largest:
            return i
    return 0


@_helper(fastmath=_FAST)
def _count_at_least(row, threshold):
    count = _i32(0)
    for i in range(row.size):
        count += _i32(row[i] >= threshold)
    return count


@_helper(inline="always")
def exp_of_minus(depth):
    """exp(-depth) for depth >= 0, within 1.2e-7 relative; 1.6e-38 from depth 87 on. Written out so that it vectorizes.

    Argument reduction by ln 2 in two parts, then the degree-6 polynomial of Cephes' expf.
    """
    x = -min(depth, _f32(87.0))
    n = np.floor(x * _f32(1.44269504) + _f32(0.5))
    x = x - n * _f32(0.693359375) + n * _f32(2.12194440e-4)
    p = _f32(1.9875691500e-4)
    p = p * x + _f32(1.3981999507e-3)
    p = p * x + _f32(8.3334519073e-3)
    p = p * x + _f32(4.1665795894e-2)
    p = p * x + _f32(1.6666665459e-1)
    p = p * x + _f32(5.0000001201e-1)
    power_of_two = np.int32((_i32(n) + _i32(127)) << _i32(23)).view(np.float32)
    return (p * x * x + x + _f32(1.0)) * power_of_two


@_helper(fastmath=_FAST)
def _mass_within(row, largest, temperature, limit):
    """Sum of exp(-depth) over the tokens no deeper than `limit`."""
    mass = _f64(0.0)
    for i in range(row.size):
        depth = (largest - row[i]) / temperature
        mass += _f64(exp_of_minus(depth)) if depth <= limit else _f64(0.0)
    return mass


@_helper(fastmath=_FAST)
def _weigh(depths, weights):
    """weights = exp(-depths); returns their sum."""
    mass = _f64(0.0)
    for i in range(depths.size):
        weights[i] = exp_of_minus(depths[i])
        mass += _f64(weights[i])
    return mass


@_helper()
def _collect(row, largest, temperature, limit, depths, ids):
    """Writes the tokens no deeper than `limit`, by rising id; returns how many. NaN is never collected."""
    count = 0
    for i in range(row.size):
        depth = abs(largest - row[i]) / temperature  # abs: 0.0 - -0.0 must not be -0.0, whose bits order last
        if depth <= limit:
            depths[count] = depth
            ids[count] = i
            count += 1
    return count


# --- what is kept -----------------------------------------------------------------------------------------------------


@_helper(fastmath=_FAST)
def _mass_up_to(keys, weights, key):
    mass = _f64(0.0)
    for i in range(keys.size):
        mass += _f64(weights[i]) if keys[i] <= key else _f64(0.0)
    return mass


@_helper()
def _keep_prefix(distances, ids, depths, weights, count, target):
    """Shrinks the first `count` entries to the smallest set of least distance whose weight reaches `target`.

    distances: float32 >= 0, what the order goes by; equal distances go by rising id, as the entries do. Entries keep
    their order. target is at most the sum of the weights; at least one entry is kept. Returns the new count.
    """
    keys = distances[:count].view(np.int32)
    target = max(target, 1e-300)
    below, within = _i32(-1), _max_key(keys)  # weight up to `below` misses the target, up to `within` reaches it
    while within - below > 1:
        middle = _i32(below + (within - below) // 2)
        if _mass_up_to(keys, weights[:count], middle) >= target:
            within = middle
        else:
            below = middle
    mass = _mass_up_to(keys, weights[:count], below)
    kept = 0
    for i in range(count):
        key = keys[i]
        if key < within or (key == within and mass < target):
            if key == within:
                mass += _f64(weights[i])
            distances[kept], ids[kept], depths[kept], weights[kept] = distances[i], ids[i], depths[i], weights[i]
            kept += 1
    return kept


@_helper()
def _top_k_limit(row, largest, temperature, k):
    """A depth that at least k tokens do not exceed, and rarely more than 2k + 64 do: probe ever lower, then halve."""
    step = temperature
    low = largest - step
    while _count_at_least(row, low) < k and low > largest - _DEEPEST * temperature:
        step = step * _f32(2.0)
        low = largest - step
    high = largest
    for _ in range(8):
        if _count_at_least(row, low) <= 2 * k + 64:
            break
        middle = low + (high - low) / _f32(2.0)
        if _count_at_least(row, middle) >= k:
            low = middle
        else:
            high = middle
    return abs(largest - low) / temperature


@_helper()
def _min_p_limit(min_p):
    """The depth of min_p times the largest probability, or where nothing matters any more."""
    return min(_DEEPEST, _f32(-np.log(min_p))) if min_p > _f32(0.0) else _DEEPEST


@_helper()
def _top_p_limit(vocab, top_p, mass):
    """A depth that top-p never reaches: the tokens beyond weigh less together than it leaves out of `mass`."""
    left_out = (_f64(1.0) - _f64(top_p)) * mass
    return _f32(max(np.log(_f64(vocab) / left_out), 0.0))


# --- the draw ---------------------------------------------------------------------------------------------------------


@_helper(inline="always")
def mix(h):
    h = _u32(h ^ (h >> _u32(16)))
    h = _u32(h * _u32(0x85EBCA6B))
    h = _u32(h ^ (h >> _u32(13)))
    h = _u32(h * _u32(0xC2B2AE35))
    return _u32(h ^ (h >> _u32(16)))


@_helper()
def noise_key(seed, position, init):
    h = mix(_u32(init ^ _u32(seed)))
    h = mix(_u32(h * _u32(5) + _u32(seed >> 32)))
    return mix(_u32(h * _u32(5) + _u32(position)))


@_helper(inline="always")
def random_bits(token_id, key_a, key_b):
    return mix(_u32(mix(_u32(_u32(_u32(token_id) * _u32(0x9E3779B1)) ^ key_a)) ^ key_b))


@_helper()
def _gumbel(bits):
    uniform = min((_f32(bits) + _f32(0.5)) * _f32(2.0**-32), _f32(1.0 - 2.0**-24))
    return -np.log(-np.log1p(-uniform))


@_helper(fastmath=_FAST)
def _score_bounds(depths, ids, key_a, key_b, bounds):
    """bounds[i] >= score of entry i, by less than 0.1 where the noise is large.

    gumbel = -log(-log1p(-u)) <= -log(u), and log2(y) >= exponent + mantissa fraction of y, which is the integer value
    of y's bits, scaled. u = y / 2**32.
    """
    for i in range(depths.size):
        y = _f32(random_bits(ids[i], key_a, key_b)) + _f32(0.5)
        log2_y = _f32(np.float32(y).view(np.int32)) * _f32(2.0**-23) - _f32(127.0)
        bounds[i] = (_f32(32.0) - log2_y) * _LN2 - depths[i] + _BOUND_SLACK


@_helper()
def _draw(depths, ids, seed, position, bounds):
    """The entry with the largest gumbel - depth, as a token id; `bounds` is scratch. 0 when there is no entry."""
    key_a = noise_key(seed, position, _u32(0x243F6A88))
    key_b = noise_key(seed, position, _u32(0x85A308D3))
    _score_bounds(depths, ids, key_a, key_b, bounds)
    best_score, best_id = _f32(-np.inf), _i32(0)
    for i in range(depths.size):
        if bounds[i] >= best_score:
            score = _gumbel(random_bits(ids[i], key_a, key_b)) - depths[i]
            if score > best_score:
                best_score, best_id = score, ids[i]
    return best_id


# --- the passes -------------------------------------------------------------------------------------------------------


@_helper()
def _keep_filtered(row, largest, temperature, top_k, top_p, min_p, depths, ids, weights):
    """Writes what min-p, then top-k, then top-p keep, by rising id; returns how many."""
    limit = _min_p_limit(min_p)
    has_top_k, has_top_p = 0 < top_k < row.size, top_p < _f32(1.0)
    mass = _f64(0.0)
    if has_top_k:
        limit = min(limit, _top_k_limit(row, largest, temperature, top_k))
    elif has_top_p:
        mass = _mass_within(row, largest, temperature, limit)
        limit = min(limit, _top_p_limit(row.size, top_p, mass))
    count = _collect(row, largest, temperature, limit, depths, ids)
    if has_top_k and top_k < count:
        weights[:count] = _f32(1.0)
        count = _keep_prefix(depths, ids, depths, weights, count, _f64(top_k))
    if has_top_p and count > 1:
        kept_mass = _weigh(depths[:count], weights)
        target = _f64(top_p) * (kept_mass if has_top_k else mass)
        count = _keep_prefix(depths, ids, depths, weights, count, target)
    return count


@_helper()
def sample_row(row, temperature, top_k, top_p, min_p, seed, position, depths, ids, weights):
    if temperature == _f32(0.0):
        return _argmax(row)
    count = _keep_filtered(row, row_max(row), temperature, top_k, top_p, min_p, depths, ids, weights)
    return _draw(depths[:count], ids[:count], seed, position, weights)


@_helper()
def mask_filtered_row(row, temperature, top_k, top_p, min_p, depths, ids, weights):
    count = _keep_filtered(row, row_max(row), temperature, top_k, top_p, min_p, depths, ids, weights)
    _mask_all_but(row, ids, count)


@_helper()
def _mask_all_but(row, ids, count):
    next_kept = 0
    for i in range(row.size):
        if next_kept < count and ids[next_kept] == i:
            next_kept += 1
        else:
            row[i] = _f32(-np.inf)


@_helper()
def mask_typical_row(row, temperature, min_p, typical_p, depths, ids, weights, distances):
    """-log p - entropy = depth - mean depth, so the distance from typical needs no logarithm."""
    count = _collect(row, row_max(row), temperature, _min_p_limit(min_p), depths, ids)
    mass = _weigh(depths[:count], weights)
    mean_depth = _f64(0.0)
    for i in range(count):
        mean_depth += _f64(weights[i]) * _f64(depths[i]) / mass
    for i in range(count):
        distances[i] = _f32(abs(_f64(depths[i]) - mean_depth))
    if typical_p < _f32(1.0) and count > 1:
        count = _keep_prefix(distances, ids, depths, weights, count, _f64(typical_p) * mass)
    _mask_all_but(row, ids, count)
