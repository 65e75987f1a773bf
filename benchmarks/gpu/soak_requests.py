"""What the soak asks for, drawn at random, and what is wrong with an answer."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import msgspec

from engines.native.types import FINISH_LENGTH, FINISH_STOP, AddSequence, TokenOutput, TokenParams

NUM_PREFIXES, PREFIX_TOKENS = 6, 96
ABORTED_SHARE = 0.1
LONG_SHARE = 0.3  # of the outputs: those outgrow the blocks that admission keeps free for them


@dataclass(slots=True)
class Request:
    """One sequence: what was asked, what came, and after how many steps it is aborted, if it is."""

    message: AddSequence
    abort_after: int | None = None
    outputs: list[TokenOutput] = field(default_factory=list[TokenOutput])
    aborted: bool = False

    @property
    def token_ids(self) -> list[int]:
        return [token for output in self.outputs for token in output.token_ids]

    @property
    def ended(self) -> bool:
        return bool(self.outputs) and self.outputs[-1].finish != 0


class Mixer:
    """Draws requests for a model of `vocab_size` tokens, of at most `max_len` together."""

    def __init__(self, vocab_size: int, max_len: int, rng: random.Random) -> None:
        self._vocab, self._max_len, self._rng = vocab_size, max_len, rng
        self._prefixes = [self._tokens(min(PREFIX_TOKENS, max_len // 3)) for _ in range(NUM_PREFIXES)]
        self._next_id = 0

    def draw(self) -> list[Request]:
        """One request, as the sequences of its choices."""
        rng = self._rng
        longest = self._max_len // 2
        prompt = self._tokens(min(longest, int(2 ** rng.uniform(0, 9.5))))
        if rng.random() < 0.3:
            prompt = (rng.choice(self._prefixes) + prompt)[: self._max_len // 2]
        max_tokens = min(longest, int(2 ** (rng.uniform(5, 8) if rng.random() < LONG_SHARE else rng.uniform(0, 4.6))))
        choices = rng.choice([2, 3, 4]) if rng.random() < 0.1 else 1
        params = self._params(max_tokens)
        requests: list[Request] = []
        for choice in range(choices):
            seeded = msgspec.structs.replace(params, seed=rng.getrandbits(60) + choice)
            abort_after = rng.randrange(0, 2 * max_tokens) if rng.random() < ABORTED_SHARE else None
            requests.append(Request(AddSequence(self._next_id, prompt, seeded), abort_after))
            self._next_id += 1
        return requests

    def _tokens(self, count: int) -> tuple[int, ...]:
        return tuple(self._rng.randrange(self._vocab) for _ in range(count))

    def _params(self, max_tokens: int) -> TokenParams:
        rng = self._rng
        kind: dict[str, Any] = rng.choice(
            [
                {"temperature": 0.0},
                {"temperature": 0.0},
                {"temperature": rng.uniform(0.1, 2.0)},
                {"top_k": rng.randint(1, 60), "top_p": rng.uniform(0.3, 1.0)},
                {"top_p": rng.uniform(0.05, 0.99), "temperature": rng.uniform(0.5, 1.5)},
                {"min_p": rng.uniform(0.01, 0.5)},
                {"typical_p": rng.uniform(0.3, 0.99)},
                {"repetition_penalty": 1.3, "frequency_penalty": 0.5},
                {"presence_penalty": 1.5, "temperature": 0.0},
                {"logit_bias": tuple((token, rng.uniform(-50, 5)) for token in self._tokens(5))},
                {"bad_words": tuple(self._tokens(rng.randint(1, 3)) for _ in range(3))},
            ]
        )
        extra: dict[str, Any] = {}
        if rng.random() < 0.3:
            extra["stop_token_ids"] = tuple(rng.sample(range(self._vocab), self._vocab // 20))
            extra["min_tokens"] = rng.randint(0, max_tokens)
        if rng.random() < 0.15:
            extra["logprobs"] = rng.randint(0, 5)
        if rng.random() < 0.03:
            extra["prompt_logprobs"] = rng.randint(0, 3)
        return TokenParams(max_tokens=max_tokens, **kind, **extra)


def problems(request: Request, vocab_size: int) -> list[str]:
    """What is wrong with a request's outputs, in words."""
    params, tokens = request.message.params, request.token_ids
    found: list[str] = []
    if request.aborted:
        return ["ended and aborted"] if request.ended else found
    if not request.ended:
        return ["did not end"]
    if any(not 0 <= token < vocab_size for token in tokens):
        found.append("a token beyond the vocabulary")
    stops = set(params.stop_token_ids)
    finish = request.outputs[-1].finish
    if finish == FINISH_LENGTH and len(tokens) != params.max_tokens:
        found.append(f"{len(tokens)} tokens instead of {params.max_tokens}")
    elif finish == FINISH_STOP and not (tokens[-1] in stops and params.min_tokens < len(tokens) <= params.max_tokens):
        found.append(f"stopped after {len(tokens)} tokens, at least {params.min_tokens}, by {tokens[-1]}")
    elif finish not in (FINISH_LENGTH, FINISH_STOP):
        found.append(f"ended by {finish}: {request.outputs[-1].error}")
    if stops & set(tokens[:-1]):
        found.append("went on after a stop token")
    rows = [row for output in request.outputs for row in output.logprobs]
    wanted = len(tokens) if params.logprobs >= 0 else 0
    if [row.token_id for row in rows] != tokens[:wanted]:
        found.append(f"log-probabilities of {len(rows)} tokens instead of {wanted}")
    if any(len(row.top_ids) != params.logprobs for row in rows):
        found.append("another number of alternatives")
    scored = len(request.outputs[0].prompt_logprobs)
    if scored != (len(request.message.prompt_token_ids) if params.prompt_logprobs >= 0 else 0):
        found.append(f"log-probabilities of {scored} prompt tokens")
    return found
