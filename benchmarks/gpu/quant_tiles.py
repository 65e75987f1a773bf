"""The tiles that cases_quant tries for products of quantized weights."""

from __future__ import annotations

from dataclasses import replace

from engines.native.kernels.triton_gemv import GemvConfig
from engines.native.kernels.triton_int4_gemv import Int4GemvConfig
from engines.native.kernels.triton_linear import LinearConfig

BATCHES = (1, 8, 64, 256, 2048)
BITS = {"int4": 4.5, "int4 g32": 5.0, "nf4": 4.25, "fp4": 4.25, "fp8": 8.0, "int8": 8.0}
"""Of a weight, and its share of scales."""

MOST_TOKENS = {"int4 g32": 8, "fp4": 64}  # of kinds that differ little from one that goes on
BYTE_GEMV = [
    GemvConfig(4, 2048),
    GemvConfig(4, 4096, 8),
    GemvConfig(8, 1024),
    GemvConfig(2, 4096),
    GemvConfig(8, 2048, 8),
    GemvConfig(4, 2048, prefetch_bytes=8 * 1024),
    GemvConfig(8, 1024, prefetch_bytes=8 * 1024),
]
_INT4_ROWS = [
    Int4GemvConfig(4, 4096, 4),
    Int4GemvConfig(4, 2048, 2),
    Int4GemvConfig(4, 1024, 1),
    Int4GemvConfig(8, 1024, 1),
]
INT4_GEMV = [
    *_INT4_ROWS,
    *(replace(config, prefetch_bytes=8 * 1024) for config in _INT4_ROWS),
    *(replace(config, early=False) for config in _INT4_ROWS[::3]),
    *(replace(config, pdl=False) for config in _INT4_ROWS[::3]),
    Int4GemvConfig(8, 2048, 2),
    Int4GemvConfig(8, 4096, 4),
    Int4GemvConfig(2, 4096, 4),
]
TERMS_TILES = {
    8: [
        LinearConfig(16, 64, 128, split_k=split_k, num_stages=num_stages)
        for split_k, num_stages in ((1, 5), (2, 5), (4, 5), (8, 5), (4, 8))
    ]
    + [LinearConfig(16, 64, 256, split_k=split_k, num_stages=4) for split_k in (1, 2, 4, 8)]
    + [LinearConfig(16, 64, 512, split_k=split_k, num_stages=3) for split_k in (1, 2, 4)],
    64: [LinearConfig(64, 64, 128, split_k=split_k, num_stages=5) for split_k in (1, 2, 4)]
    + [LinearConfig(64, 64, 256, split_k=split_k, num_stages=3) for split_k in (1, 2, 4)]
    + [LinearConfig(64, 128, 128, split_k=split_k, num_warps=8, num_stages=4) for split_k in (1, 2)]
    + [LinearConfig(32, 64, 256, split_k=split_k, num_stages=4) for split_k in (1, 2)],
}
TILES = {
    8: [
        LinearConfig(16, 64, 128, num_stages=5),
        LinearConfig(16, 32, 256, num_stages=4),
        LinearConfig(16, 32, 128, num_stages=6),
        LinearConfig(16, 64, 256, num_stages=3),
        LinearConfig(16, 64, 128, split_k=2, num_stages=5),
        LinearConfig(16, 64, 128, split_k=4),
    ],
    64: [
        LinearConfig(64, 64, 128, num_stages=4),
        LinearConfig(64, 64, 128, split_k=2),
        LinearConfig(64, 128, 128, num_warps=8, num_stages=3),
        LinearConfig(64, 64, 64, num_stages=5),
        LinearConfig(32, 64, 128),
        LinearConfig(64, 32, 128),
    ],
    256: [
        LinearConfig(128, 64, 64, num_stages=4),
        LinearConfig(128, 128, 64, num_warps=8),
        LinearConfig(64, 128, 128, num_warps=8, num_stages=3),
    ],
}
INT4_TILES = {
    1: [
        LinearConfig(16, 64, 256, split_k=2, num_stages=3),
        LinearConfig(16, 64, 256, split_k=4, num_stages=3),
        LinearConfig(16, 64, 256, split_k=8, num_stages=3),
        LinearConfig(16, 64, 256, num_stages=3),
        LinearConfig(16, 64, 128, split_k=4),
        LinearConfig(16, 64, 128),
    ],
    64: [
        LinearConfig(64, 64, 256, num_stages=3),
        LinearConfig(64, 64, 256, split_k=2, num_stages=3),
        LinearConfig(64, 64, 128),
        LinearConfig(64, 128, 128, num_warps=8, num_stages=3),
    ],
    256: [
        LinearConfig(128, 64, 128, num_stages=3),
        LinearConfig(128, 128, 128, num_warps=8, num_stages=3),
        LinearConfig(256, 128, 64, num_warps=8, num_stages=3),
    ],
}
INT4_TILES[8] = INT4_TILES[1]
