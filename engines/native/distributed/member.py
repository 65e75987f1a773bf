"""A rank's membership: who it is among how many, and how it finds the others. Values only, no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engines.errors import EngineUnavailable
from engines.native.core import Runner
from engines.native.models.model_config import ModelConfig

NO_MULTICAST = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}
"""NVLink multicast stays off: a program that ends while it uses it can put GPUs out of service that others share."""


def _unchanged(runner: Runner) -> Runner:
    return runner


@dataclass(frozen=True, slots=True)
class Member:
    """`lead` makes the runner of rank 0 one that tells its plans to the others."""

    rank: int
    world_size: int
    meeting: Path  # a file that all ranks can write, not there yet: they exchange their addresses in it
    lead: Callable[[Runner], Runner] = _unchanged


def refuse_unsplittable(config: ModelConfig, world_size: int) -> None:
    """Raises EngineUnavailable naming the setting and the numbers, where a model cannot be split over so many ranks.

    Heads and channels are split evenly; KV heads that are fewer than ranks are held by several.
    """
    kv_heads = config.num_kv_heads
    problems = [
        f"its {count} {what} cannot be split evenly"
        for what, count in (("attention heads", config.num_heads), ("MLP channels", config.intermediate_size))
        if count % world_size
    ]
    if kv_heads % world_size and world_size % kv_heads:
        problems.append(f"its {kv_heads} KV heads neither divide nor are divided by that number")
    if problems:
        raise EngineUnavailable(
            f"tensor_parallel_size is {world_size}, but the model does not fit on {world_size} ranks: "
            f"{'; '.join(problems)}.",
            field="tensor_parallel_size",
        )
