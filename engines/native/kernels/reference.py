"""Plain PyTorch twins of every kernel: the oracle that the fast ones are tested against, on any device and dtype.

Clear rather than fast. Owns the meaning of each operation; knows nothing of models, schedulers or devices.
Statistics, rotations and softmax are computed in float32 and rounded once, to the input's dtype.
"""

import torch
from torch import Tensor
from torch.nn import functional

from engines.native.kernels.ops import Rotary
from engines.native.layers.attention_metadata import AttentionMetadata, LastTokens

E4M3_MAX = 448.0


def prepare_linear(weight: Tensor) -> Tensor:
    """The form in which `linear` takes a loaded weight [N, K]: here the weight itself."""
    return weight


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [num_tokens, K] times weight [N, K] transposed, plus bias [N]: [num_tokens, N].

    The arithmetic is x's dtype; a weight of another dtype is converted first.
    """
    return functional.linear(x, weight.to(x.dtype), bias)


def logits(x: Tensor, weight: Tensor) -> Tensor:
    """`linear` in float32, whatever x's dtype."""
    return linear(x, weight).float()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale each row of x [..., N] to unit root mean square, then by weight [N] (arXiv 1910.07467, equation 4)."""
    rows = x.float()
    scale = torch.rsqrt(rows.pow(2).mean(dim=-1, keepdim=True) + eps)
    return (rows * scale * weight.float()).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual); neither argument is written."""
    new_residual = x + residual
    return rms_norm(new_residual, weight, eps), new_residual


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """silu(first half) * second half of each row: [num_tokens, 2 * I] to [num_tokens, I] (arXiv 2002.05202)."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (functional.silu(gate) * up).to(gate_up.dtype)


def gated_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """silu_and_mul of the product with weight [2 * I, K]: [num_tokens, I]."""
    return silu_and_mul(linear(x, weight, bias))


def norm_linear(
    x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(linear(rms_norm(x + residual)), x + residual); without a residual the sum is x."""
    total = x if residual is None else x + residual
    return linear(rms_norm(total, norm_weight, eps), weight, bias), total


def norm_gated_linear(
    x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`norm_linear` with silu_and_mul of the product in its place."""
    gate_up, total = norm_linear(x, residual, norm_weight, eps, weight, bias)
    return silu_and_mul(gate_up), total


def rope(heads: Tensor, positions: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate heads [num_tokens, H, D] by position (arXiv 2104.09864), pairing dimension i with i + rotary_dim / 2.

    cos_sin is [max_positions, rotary_dim] float32, cosines in the first half of a row, sines in the second. Dimensions
    past rotary_dim pass through.
    """
    rotary_dim = cos_sin.shape[1]
    cos, sin = cos_sin[positions].unsqueeze(1).chunk(2, dim=-1)
    first, second = heads[..., :rotary_dim].float().chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return torch.cat([rotated.to(heads.dtype), heads[..., rotary_dim:]], dim=-1)


def rope_and_cache(
    qkv: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    q_norm_weight: Tensor | None,
    k_norm_weight: Tensor | None,
    eps: float,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
) -> Tensor:
    """Split qkv, normalize each head of q and k where a weight [head_dim] is given, rotate, and write k and v.

    qkv is [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim], positions [num_tokens] int64, slot_mapping
    [num_tokens] int64 with -1 for tokens that are not cached, the caches [num_blocks, block_size, num_kv_heads,
    head_dim]. Returns the rotated q, [num_tokens, num_heads, head_dim].
    """
    heads = qkv.view(qkv.shape[0], num_heads + 2 * num_kv_heads, head_dim)
    q, k, v = heads.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    if q_norm_weight is not None:
        q = rms_norm(q, q_norm_weight, eps)
    if k_norm_weight is not None:
        k = rms_norm(k, k_norm_weight, eps)
    q, k = rope(q, positions, cos_sin), rope(k, positions, cos_sin)
    cached = slot_mapping >= 0
    slots = slot_mapping[cached]
    for cache, heads in ((key_cache, k), (value_cache, v)):
        stored = heads[cached].to(cache.dtype)
        if cache.dtype == torch.float8_e4m3fn:  # which torch neither saturates nor scatters
            stored = heads[cached].clamp(-E4M3_MAX, E4M3_MAX).to(cache.dtype).view(torch.uint8)
            cache = cache.view(torch.uint8)
        cache.view(-1, num_kv_heads, head_dim)[slots] = stored
    return q


def paged_attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int = 0,
) -> Tensor:
    """Causal attention of q [num_tokens, num_heads, D] over the paged cache; returns the shape of q.

    Query heads h * G to h * G + G - 1 share KV head h (G = num_heads / num_kv_heads). A sliding window of w > 0
    positions lets a query see the last w positions, its own included; 0 is no window.
    """
    output = torch.zeros_like(q)
    group = q.shape[1] // key_cache.shape[2]
    starts, lengths = metadata.query_start_loc.tolist(), metadata.seq_lens.tolist()
    for index, seq_len in enumerate(lengths):
        query = q[starts[index] : starts[index + 1]].float()
        if query.shape[0] == 0 or seq_len == 0:
            continue
        blocks = metadata.block_tables[index].long()[: -(-seq_len // key_cache.shape[1])]
        keys, values = (
            _gather(cache, blocks)[:seq_len].float().repeat_interleave(group, dim=1)
            for cache in (key_cache, value_cache)
        )
        query_at = torch.arange(seq_len - query.shape[0], seq_len, device=q.device).unsqueeze(1)
        key_at = torch.arange(seq_len, device=q.device)
        visible = key_at <= query_at
        if sliding_window > 0:
            visible &= key_at > query_at - sliding_window
        scores = torch.einsum("qhd,khd->hqk", query, keys) * scale
        weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
        output[starts[index] : starts[index + 1]] = torch.einsum("hqk,khd->qhd", weights, values).to(q.dtype)
    return output


def _gather(cache: Tensor, blocks: Tensor) -> Tensor:
    """Blocks of a cache, their positions in a row; torch gathers no float8, so bytes of it."""
    if cache.dtype == torch.float8_e4m3fn:
        return cache.view(torch.uint8)[blocks].flatten(0, 1).view(cache.dtype)
    return cache[blocks].flatten(0, 1)


def attend(
    qkv: Tensor,
    positions: Tensor,
    rotary: Rotary,
    key_cache: Tensor,
    value_cache: Tensor,
    metadata: AttentionMetadata,
    num_heads: int,
    scale: float,
    sliding_window: int = 0,
    last: LastTokens | None = None,
) -> Tensor:
    """`rope_and_cache`, then `paged_attention`, with `last` of its queries only."""
    q = rope_and_cache(
        qkv,
        positions,
        rotary.cos_sin,
        rotary.q_norm_weight,
        rotary.k_norm_weight,
        rotary.eps,
        key_cache,
        value_cache,
        metadata.slot_mapping,
        num_heads,
        *key_cache.shape[2:],
    )
    if last is not None:
        q, metadata = q[last.at], last.metadata
    return paged_attention(q, key_cache, value_cache, metadata, scale, sliding_window)
