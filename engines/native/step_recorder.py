"""Counts the core's steps into distributions, at a cost that does not depend on how many sequences are in them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from engines.native.types import BatchPlan
from engines.step_stats import SECONDS_BOUNDS, SIZE_BOUNDS, Distribution, StepStats, StepTimes


class StepRecorder:
    """Told what each step took; says what all of them took."""

    def __init__(self) -> None:
        self._prefill = _Times()
        self._decode = _Times()
        self._joining = _Histogram(SECONDS_BOUNDS)
        self._sizes = _Histogram(SIZE_BOUNDS)

    def planned(self, plan: BatchPlan, seconds: float) -> None:
        """Only plans that bring a sequence to others count."""
        if plan.admissions and len(plan.rows) > len(plan.admissions):
            self._joining.add(seconds)

    def done(self, plan: BatchPlan, device_s: float, record_s: float) -> None:
        is_prefill = len(plan.rows) > plan.num_decodes
        times = self._prefill if is_prefill else self._decode
        times.whole.add(device_s + record_s)
        times.device.add(device_s)
        times.record.add(record_s)
        if is_prefill:
            self._sizes.add(len(plan.rows))

    def stats(self) -> StepStats:
        return StepStats(self._prefill.told(), self._decode.told(), self._joining.told(), self._sizes.told())


class _Histogram:
    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def told(self) -> Distribution:
        return Distribution(tuple(self._counts), self._total)


class _Times:
    def __init__(self) -> None:
        self.whole = _Histogram(SECONDS_BOUNDS)
        self.device = _Histogram(SECONDS_BOUNDS)
        self.record = _Histogram(SECONDS_BOUNDS)

    def told(self) -> StepTimes:
        return StepTimes(self.whole.told(), self.device.told(), self.record.told())
