"""Rotary position settings: which scaling, with which numbers. The frequencies themselves are in layers/rotary.py.

Scalings: linear (arXiv 2306.15595), dynamic NTK (base grows with the context), yarn (arXiv 2309.00071), llama3
(Llama 3.1's band-wise interpolation), longrope (arXiv 2402.13753, one divisor a frequency). No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from engines.errors import EngineUnavailable

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Numbers that a kind does not use keep their defaults."""

    theta: float
    rotary_dim: int  # leading dimensions of each head that rotate
    kind: RopeKind = "default"
    factor: float = 1.0
    original_max_positions: int = 0  # context before scaling; for dynamic: where the scaling begins
    attention_factor: float = 1.0  # multiplies cosines and sines
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True  # yarn: round the band's edges to whole dimensions
    short_factors: tuple[float, ...] = ()  # [rotary_dim / 2] divisors up to original_max_positions
    long_factors: tuple[float, ...] = ()  # ... and beyond

    def context_length(self, max_position_embeddings: int) -> int:
        """What `max_position_embeddings` means under this scaling, in tokens.

        Linear and yarn configurations state the length before scaling; llama3 and longrope the one after it. Dynamic
        scaling changes the frequencies of short texts too once the context is set longer, so by default it is not.
        """
        if self.kind == "linear":
            return int(max_position_embeddings * self.factor)
        if self.kind == "yarn":
            return int(self.original_max_positions * self.factor)
        return max_position_embeddings


def parse_rope(fields: Mapping[str, Any], head_dim: int, max_position_embeddings: int, theta: float) -> RopeConfig:
    """From a Hugging Face configuration, old form (`rope_theta`, `rope_scaling`) or new (`rope_parameters`).

    `theta` is the family's default. Raises EngineUnavailable naming the field.
    """
    name = "rope_scaling" if fields.get("rope_scaling") else "rope_parameters"
    settings: Mapping[str, Any] = fields.get(name) or {}
    if any(isinstance(value, Mapping) for value in settings.values()):
        raise EngineUnavailable(f"{name} differs by layer type; one setting for all layers is supported.", field=name)
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind in ("su", "yarn") and "long_factor" in settings:  # what Phi-3's first checkpoints call it
        kind = "longrope"
    if kind not in get_args(RopeKind):
        supported = ", ".join(get_args(RopeKind))
        raise EngineUnavailable(f"{name}: type '{kind}' is not supported; these are: {supported}.", field=name)
    if "mrope_section" in settings:
        raise EngineUnavailable(f"{name}.mrope_section (multimodal positions) is not supported.", field=name)
    partial = settings.get("partial_rotary_factor", fields.get("partial_rotary_factor"))
    base = settings.get("rope_theta", fields.get("rope_theta"))
    plain = RopeConfig(
        theta=float(theta if base is None else base),
        rotary_dim=int(head_dim * (1.0 if partial is None else partial)),
    )
    original = fields.get("original_max_position_embeddings") or settings.get("original_max_position_embeddings")
    reader = _Settings(name, settings)
    return _scaled(plain, cast(RopeKind, kind), reader, original or max_position_embeddings, max_position_embeddings)


class _Settings:
    """A mapping whose missing keys are errors that name them."""

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        self._name, self._values = name, values

    def number(self, key: str, default: float | None = None) -> float:
        value = self._values.get(key)
        if value is None:
            value = default
        if not isinstance(value, int | float):
            raise EngineUnavailable(f"{self._name}.{key} is {value!r}; a number is needed.", field=self._name)
        return float(value)

    def optional(self, key: str) -> float | None:
        return None if self._values.get(key) is None else self.number(key)

    def factors(self, key: str, count: int) -> tuple[float, ...]:
        value = self._values.get(key)
        if not isinstance(value, Sequence) or len(cast(Sequence[Any], value)) != count:
            raise EngineUnavailable(f"{self._name}.{key} must be a list of {count} numbers.", field=self._name)
        return tuple(float(item) for item in cast(Sequence[Any], value))


def _scaled(plain: RopeConfig, kind: RopeKind, settings: _Settings, original: int, longest: int) -> RopeConfig:
    """`plain` with a kind's settings; `original` and `longest` are the contexts before and after scaling, in tokens."""
    common: dict[str, Any] = {"theta": plain.theta, "rotary_dim": plain.rotary_dim, "kind": kind}
    match kind:
        case "default":
            return plain
        case "linear" | "dynamic":
            return RopeConfig(**common, factor=settings.number("factor"), original_max_positions=longest)
        case "llama3":
            return RopeConfig(
                **common,
                factor=settings.number("factor"),
                original_max_positions=original,
                low_freq_factor=settings.number("low_freq_factor"),
                high_freq_factor=settings.number("high_freq_factor"),
            )
        case "yarn":
            factor = settings.number("factor", longest / original)
            return RopeConfig(
                **common,
                factor=factor,
                original_max_positions=original,
                attention_factor=_yarn_attention_factor(factor, settings),
                beta_fast=settings.optional("beta_fast") or 32.0,
                beta_slow=settings.optional("beta_slow") or 1.0,
                truncate=bool(settings.number("truncate", True)),
            )
        case "longrope":
            factor = settings.number("factor", longest / original)
            attention_factor = settings.optional("attention_factor")
            return RopeConfig(
                **common,
                factor=factor,
                original_max_positions=original,
                attention_factor=longrope_attention_factor(factor, original)
                if attention_factor is None
                else attention_factor,
                short_factors=settings.factors("short_factor", plain.rotary_dim // 2),
                long_factors=settings.factors("long_factor", plain.rotary_dim // 2),
            )


def longrope_attention_factor(factor: float, original_max_positions: int) -> float:
    """sqrt(1 + ln(factor) / ln(original context)), 1 where nothing is stretched (arXiv 2402.13753)."""
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original_max_positions))


def yarn_mscale(factor: float, weight: float = 1.0) -> float:
    """0.1 * weight * ln(factor) + 1, 1 where nothing is stretched (arXiv 2309.00071, equation 22)."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _yarn_attention_factor(factor: float, settings: _Settings) -> float:
    given = settings.optional("attention_factor")
    if given is not None:
        return given
    weight, weight_all = settings.optional("mscale"), settings.optional("mscale_all_dim")
    if weight and weight_all:
        return yarn_mscale(factor, weight) / yarn_mscale(factor, weight_all)
    return yarn_mscale(factor)
