"""The runner of rank 0: tells each plan to the other ranks before it does it. Knows no tensors."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from engines.native.core import Runner
from engines.native.distributed.plan_record import encode_masks, encode_plan
from engines.native.grammar.constraint import TokenMasks
from engines.native.types import BatchPlan, SampledTokens


class LeadingRunner:
    """Satisfies `engines.native.core.Runner` around another one."""

    def __init__(self, runner: Runner, publish: Callable[[bytes], None]) -> None:
        self._runner = runner
        self._publish = publish
        self._started_s = 0.0
        self._num_open = 0

    @property
    def busy_s(self) -> float:
        """How long the steps that are not collected yet have gone without one of them ending; 0 without any."""
        return time.monotonic() - self._started_s if self._num_open else 0.0

    def launch(self, plan: BatchPlan) -> Any:
        if not self._num_open:
            self._started_s = time.monotonic()
        self._num_open += 1
        if plan.rows or plan.admissions or plan.block_appends:
            self._publish(encode_plan(plan))
        return self._runner.launch(plan)

    def choose(self, launched: Any, masks: TokenMasks) -> None:
        self._publish(encode_masks(masks))
        self._runner.choose(launched, masks)

    def collect(self, launched: Any) -> SampledTokens:
        sampled = self._runner.collect(launched)
        self._num_open -= 1
        self._started_s = time.monotonic()
        return sampled
