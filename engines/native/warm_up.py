"""First steps before the first request, so that no user pays for compiling, allocating and page faults."""

from __future__ import annotations

from engines.native.core import Runner
from engines.native.types import Admission, BatchPlan, TokenParams

_PARAMS = (TokenParams(max_tokens=1, temperature=0.0), TokenParams(max_tokens=1, temperature=1.0, top_p=0.9, top_k=20))


def warm_up(runner: Runner, max_num_batched_tokens: int, max_model_len: int) -> None:
    """One prefill at the token budget and decodes, greedy and sampled, in row 0 and KV block 0.

    What they write is never read: no sequence owns that block yet, and every owner writes before it reads.
    """
    length = min(max_num_batched_tokens, max_model_len - 1)
    for params in _PARAMS:
        for start, count in ((0, length), (0, 1)):
            plan = BatchPlan(
                rows=[0],
                starts=[start],
                num_tokens=[count],
                samples=[True],
                num_decodes=int(count == 1),
                admissions=[Admission(0, [0] * length, length, params)],
            )
            runner.collect(runner.launch(plan))
