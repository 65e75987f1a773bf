"""A prompt that was read to the whole answer: which tokens, where a stop condition cuts them, and in which steps.

What is said back comes once and ends with "stop" where `max_tokens` is absent; it is repeated up to `max_tokens` and
ends with "length" where that is given. Knows no clock and no event loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from engines.api import Finish, GenerationRequest, SamplingParams, TextDelta
from engines.echo.prompt import ReadPrompt
from engines.echo.tokens import split_tokens, token_id


def write_answer(prompt: ReadPrompt, request: GenerationRequest) -> list[tuple[TextDelta, ...]]:
    """Every step of the answer: one delta per choice. A request that is not streamed is answered in one step."""
    tokens, finish = _choose_tokens(prompt, request.sampling)
    ids = {token: token_id(token) for token in set(tokens)}
    texts = tokens
    if stop := _first_stop(tokens, ids, request.sampling):
        finish = Finish("stop", stop.matched)
        tokens = tokens[: stop.num_tokens]
        texts = _cut(tokens, stop.num_chars)

    def deltas(text: str, tokens: Sequence[str], finish: Finish | None = None) -> tuple[TextDelta, ...]:
        token_ids = tuple(ids[token] for token in tokens)
        return tuple(TextDelta(i, text, len(tokens), token_ids, (), finish) for i in range(request.n))

    if not tokens or not request.stream:
        return [deltas("".join(texts), tokens, finish)]
    made = {token: deltas(token, (token,)) for token in ids}  # frozen, so a token that is repeated is the same delta
    steps = [made[token] for token in tokens]
    if stop:
        steps = [deltas(text, (token,)) for text, token in zip(texts, tokens, strict=True)]
    steps[-1] = deltas(texts[-1], tokens[-1:], finish)
    return steps


def _choose_tokens(prompt: ReadPrompt, sampling: SamplingParams) -> tuple[list[str], Finish]:
    """The tokens before any stop condition is looked at, and how the choice ends if none applies."""
    once = split_tokens(prompt.answer)
    if not once:
        return [], Finish("stop")
    if sampling.max_tokens is None and not sampling.ignore_eos and max(len(once), sampling.min_tokens) <= prompt.room:
        num_tokens, finish = max(len(once), sampling.min_tokens), Finish("stop")
    else:
        num_tokens = prompt.room if sampling.max_tokens is None else sampling.max_tokens
        finish = Finish("length")
    again = split_tokens(" " + prompt.answer)
    rounds = -(-max(num_tokens - len(once), 0) // len(again))
    return (once + again * rounds)[:num_tokens], finish


@dataclass(frozen=True, slots=True)
class _Stop:
    matched: str | int
    num_tokens: int  # generated when the condition was met
    num_chars: int  # of text that remain


def _first_stop(tokens: Sequence[str], ids: Mapping[str, int], sampling: SamplingParams) -> _Stop | None:
    """The condition met with the fewest tokens: a token before strings, then the string ending first, then longest."""
    if not tokens or not (sampling.stop or sampling.stop_token_ids):
        return None
    ends = list(accumulate(map(len, tokens)))  # ends[i]: characters of text up to and including token i
    unchecked = ends[min(sampling.min_tokens, len(ends)) - 1] if sampling.min_tokens else 0
    text = "".join(tokens)
    kept = sampling.include_stop_str_in_output
    found: list[tuple[int, int, int, _Stop]] = []  # tokens needed, end, start
    for stop in sampling.stop:
        start = text.find(stop, max(unchecked + 1 - len(stop), 0))
        if start >= 0:
            end = start + len(stop)
            num_tokens = bisect_left(ends, end) + 1
            found.append((num_tokens, end, start, _Stop(stop, num_tokens, end if kept else start)))
    for i in range(sampling.min_tokens, len(tokens)):
        if (matched := ids[tokens[i]]) in sampling.stop_token_ids:
            before = ends[i] - len(tokens[i])
            found.append((i + 1, -1, -1, _Stop(matched, i + 1, ends[i] if kept else before)))
            break
    return min(found, key=lambda item: item[:3])[3] if found else None


def _cut(tokens: Sequence[str], num_chars: int) -> list[str]:
    """The first `num_chars` characters, still one piece per token."""
    pieces: list[str] = []
    for token in tokens:
        pieces.append(token[: max(num_chars, 0)])
        num_chars -= len(token)
    return pieces
