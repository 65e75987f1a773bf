"""The sampling noise on the GPU: bit for bit the hash of sampling/noise.py, which defines it."""

# Triton kernels are no Python that pyright can follow; the module may be absent where there is no GPU.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportIndexIssue=false

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def mix(h):
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
    h = mix(low ^ INIT)
    h = mix(h * 5 + high)
    return mix(h * 5 + (position & 0xFFFFFFFF).to(tl.uint32))


@triton.jit
def _log(x, COMPILED: tl.constexpr):
    """Natural logarithm; where compiled, the GPU's own approximation, within 2e-7 absolute or relative."""
    if COMPILED:
        return libdevice.fast_logf(x)
    else:
        return tl.log(x)


@triton.jit
def random_bits(token_ids, seed, position):
    """sampling.noise.random_bits of one row, uint32: token_ids int32; seed, position int64 scalars."""
    key_a = _noise_key(seed, position, 0x243F6A88)
    key_b = _noise_key(seed, position, 0x85A308D3)
    return mix(mix((token_ids.to(tl.uint32) * 0x9E3779B1) ^ key_a) ^ key_b)


@triton.jit
def gumbel(token_ids, seed, position, COMPILED: tl.constexpr):
    """sampling.noise.gumbel_noise of one row: token_ids int32, float32 result."""
    bits = random_bits(token_ids, seed, position)
    u = tl.minimum((bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.99999994)
    # -log1p(-u): where 1 - u would round, by its series, whose next term is below 1e-9 of the sum.
    series = u * (1.0 + u * (0.5 + u * (0.33333333 + u * (0.25 + u * (0.2 + u * 0.16666667)))))
    return -_log(tl.where(u < 0.03125, series, -_log(1.0 - u, COMPILED)), COMPILED)
