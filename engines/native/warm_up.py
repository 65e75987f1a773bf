"""First steps before the first request, so that no user pays for compiling, allocating and page faults."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from engines.native.core import Runner
from engines.native.grammar.constraint import TokenMasks
from engines.native.scheduler import SchedulerLimits
from engines.native.types import GREEN_LIST, SYNTHID, Admission, BatchPlan, Pooling, TokenParams, Watermark

_GREEDY = TokenParams(max_tokens=1, temperature=0.0)
_SAMPLED = (
    TokenParams(max_tokens=1),
    TokenParams(max_tokens=1, top_k=20, top_p=0.9, min_p=0.01, typical_p=0.9),
    TokenParams(
        max_tokens=1,
        min_tokens=1,
        temperature=0.0,
        repetition_penalty=1.1,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        stop_token_ids=(0,),
        logit_bias=((0, 1.0),),
        bad_words=((0, 0),),
        allowed_token_ids=(0,),
        logprobs=1,
        prompt_logprobs=1,
    ),
    TokenParams(max_tokens=1, watermark=Watermark(GREEN_LIST, 0, 1, threshold=2**31, delta=1.0)),
    TokenParams(max_tokens=1, top_k=20, watermark=Watermark(SYNTHID, 0, 4, depth=30)),
)
_CHUNK = 8  # tokens of a prompt that decodes share their step with


def warm_up(
    runner: Runner, longest: int, limits: SchedulerLimits, vocab_size: int, batch_sizes: Sequence[int] = ()
) -> None:
    """A prompt of `longest` tokens, a decode, each way to sample, and batches of other sizes, all in KV block 0.

    What they write is never read: no sequence owns that block yet, and every owner writes before it reads.
    batch_sizes: numbers of tokens, and of decodes up to the limit, for which the device has kernels of their own.
    """
    for plan in _plans(longest, limits.max_num_seqs, batch_sizes):
        runner.collect(runner.launch(plan))
    for plan in (_plan(1, 0, _GREEDY), _plan(1, 0, _SAMPLED[0])):
        plan.awaits_masks = True
        launched = runner.launch(plan)
        runner.choose(launched, TokenMasks([0], np.full((1, -(-vocab_size // 32)), -1, dtype=np.int32)))
        runner.collect(launched)


def warm_up_embedding(runner: Runner, longest: int, batch_sizes: Sequence[int] = ()) -> None:
    """For a model that only embeds: prompts alone, and nothing is sampled."""
    for size in (longest, *(min(size, longest) for size in batch_sizes)):
        params = TokenParams(max_tokens=0, pooling=Pooling())
        plan = BatchPlan([0], [0], [size], [False], admissions=[Admission(0, [0] * size, size, params)])
        runner.collect(runner.launch(plan))


def sample_widest(runner: Runner, limits: SchedulerLimits) -> None:
    """Each way to sample by as many sequences as can run, which is when it takes the most memory."""
    for params in _SAMPLED:
        runner.collect(runner.launch(_plan(limits.max_num_seqs, 0, params)))


def _plans(longest: int, max_num_seqs: int, batch_sizes: Sequence[int]) -> Iterator[BatchPlan]:
    yield _plan(0, longest, _GREEDY)
    yield _plan(1, 0, _GREEDY)
    for params in _SAMPLED:
        yield _plan(min(1, max_num_seqs - 1), min(_CHUNK, longest), params)
    for size in batch_sizes:
        yield _plan(0, min(size, longest), _GREEDY)
        yield _plan(min(size, max_num_seqs), 0, _GREEDY)
        yield _plan(min(size, max_num_seqs - 1), min(_CHUNK, longest), _GREEDY)


def _plan(num_decodes: int, chunk: int, params: TokenParams) -> BatchPlan:
    """Decodes of a second token in the first rows, and a prompt of `chunk` tokens in the next, if any."""
    num_tokens = [1] * num_decodes + [chunk] * (chunk > 0)
    return BatchPlan(
        rows=list(range(len(num_tokens))),
        starts=[1] * num_decodes + [0] * (chunk > 0),
        num_tokens=num_tokens,
        samples=[True] * len(num_tokens),
        num_decodes=num_decodes,
        admissions=[Admission(row, [0] * max(count, 2), max(count, 2), params) for row, count in enumerate(num_tokens)],
    )
