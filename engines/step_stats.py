"""How long an engine's steps took and how many sequences were in them, as distributions. Values only, a leaf.

A step is one forward pass of a batch. It counts as `prefill` where it computes anything of a prompt, else as `decode`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SECONDS_BOUNDS = tuple(0.00015 * 1.5**k for k in range(35))  # up to 146 s
SIZE_BOUNDS = tuple(float(2**k) for k in range(11))  # up to 1024 sequences


@dataclass(frozen=True, slots=True)
class Distribution:
    """`counts[i]`: how many lay above bound i - 1 and not above bound i; the last, how many above all. () for none."""

    counts: tuple[int, ...] = ()
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds. `device`: until a step's tokens were there, or since those of the step before where that is less;
    `record`: what the host then did with them, beside the device in overlapped steps; `whole`: both."""

    whole: Distribution = field(default_factory=Distribution)
    device: Distribution = field(default_factory=Distribution)
    record: Distribution = field(default_factory=Distribution)


@dataclass(frozen=True, slots=True)
class StepStats:
    """Since the engine's start. `joining`: seconds it took to plan the steps in which sequences joined running ones;
    `sizes`: sequences in the steps that computed prompts."""

    prefill: StepTimes = field(default_factory=StepTimes)
    decode: StepTimes = field(default_factory=StepTimes)
    joining: Distribution = field(default_factory=Distribution)
    sizes: Distribution = field(default_factory=Distribution)
