"""Rotary position tables (arXiv 2104.09864) for every scaling that models/rope_config.py can name.

Owns the frequencies. One table serves all texts of an engine, since cached keys are already rotated: a scaling that
depends on the text's length (dynamic, longrope) is taken at the longest length served. All arithmetic is float32, as
in the code that the checkpoints were trained with, so that long positions round the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from engines.native.models.rope_config import RopeConfig, RopeKind


def cos_sin_table(rope: RopeConfig, max_model_len: int, device: torch.device) -> Tensor:
    """[max_model_len, rotary_dim] float32: cosines in the first half of a row, sines in the second."""
    frequencies = _FREQUENCIES[rope.kind](rope, max_model_len).to(device)
    angles = torch.arange(max_model_len, dtype=torch.float32, device=device).unsqueeze(1) * frequencies
    table = torch.empty(max_model_len, rope.rotary_dim, device=device)
    cosines, sines = table.chunk(2, dim=-1)
    torch.cos(angles, out=cosines)
    torch.sin(angles, out=sines)
    return table if rope.attention_factor == 1.0 else table.mul_(rope.attention_factor)


def identity_table(rope: RopeConfig, max_model_len: int, device: torch.device) -> Tensor:
    """The table that rotates nothing, for layers without positional encoding: cosines 1, sines 0."""
    table = torch.zeros(max_model_len, rope.rotary_dim, device=device)
    table[:, : rope.rotary_dim // 2] = 1.0
    return table


def _powers(theta: float, rotary_dim: int) -> Tensor:
    """theta^(2i / rotary_dim) for i in [0, rotary_dim / 2), float32."""
    return theta ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)


def _default(rope: RopeConfig, _max_model_len: int) -> Tensor:
    return 1.0 / _powers(rope.theta, rope.rotary_dim)


def _linear(rope: RopeConfig, max_model_len: int) -> Tensor:
    return _default(rope, max_model_len) / rope.factor


def _dynamic(rope: RopeConfig, max_model_len: int) -> Tensor:
    """The base grows so that the longest length served lies where the original one lay."""
    stretch = max(max_model_len, rope.original_max_positions) / rope.original_max_positions
    growth = (rope.factor * stretch - (rope.factor - 1)) ** (rope.rotary_dim / (rope.rotary_dim - 2))
    return 1.0 / _powers(rope.theta * growth, rope.rotary_dim)


def _llama3(rope: RopeConfig, max_model_len: int) -> Tensor:
    """Long waves are stretched by the factor, short ones kept, those between blended by their wavelength."""
    frequencies = _default(rope, max_model_len)
    turns = rope.original_max_positions / (2 * math.pi / frequencies)  # over the original context
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - blend) * frequencies / rope.factor + blend * frequencies
    scaled = torch.where(turns < rope.low_freq_factor, frequencies / rope.factor, blended)
    return torch.where(turns > rope.high_freq_factor, frequencies, scaled)


def _yarn(rope: RopeConfig, max_model_len: int) -> Tensor:
    """Equation 23 of arXiv 2309.00071: a ramp over dimensions between kept and stretched frequencies."""
    frequencies = _default(rope, max_model_len)
    low, high = (_yarn_dimension(rope, turns) for turns in (rope.beta_fast, rope.beta_slow))
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    width = max(high - low, 0.001)  # a band of no width is a step
    ramp = ((torch.arange(rope.rotary_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return frequencies / rope.factor * ramp + frequencies * (1 - ramp)


def _yarn_dimension(rope: RopeConfig, turns: float) -> float:
    """The (fractional) dimension pair that makes so many turns over the original context."""
    length = rope.original_max_positions / (turns * 2 * math.pi)
    return rope.rotary_dim * math.log(length) / (2 * math.log(rope.theta))


def _longrope(rope: RopeConfig, max_model_len: int) -> Tensor:
    factors = rope.long_factors if max_model_len > rope.original_max_positions else rope.short_factors
    return 1.0 / (torch.tensor(factors, dtype=torch.float32) * _powers(rope.theta, rope.rotary_dim))


_FREQUENCIES: Mapping[RopeKind, Callable[[RopeConfig, int], Tensor]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
