from __future__ import annotations

import pytest

from adapters.collect import Collector
from engines.api import Done, Finish, GenerationRequest, PromptDetails, Started, TextDelta, TextPrompt, Usage
from engines.errors import GenerationFailed
from tests.adapters.driving import logprob

REQUEST = GenerationRequest(request_id="r", model="m", prompt=TextPrompt("a"), n=2)
PROMPT = PromptDetails(text="a", token_ids=(1,))
USAGE = Usage(prompt_tokens=1, completion_tokens=4)
X, Y = logprob(5, "x", -1.0), logprob(6, "y", -2.0)


def test_interleaved_choices_are_gathered_apart() -> None:
    collector = Collector(REQUEST)
    collector.add(Started(prompt_tokens=1, prompt=PROMPT))
    collector.add(TextDelta(1, "b", 1, (5,), (X,)))
    collector.add(TextDelta(0, "", 1, (6,), (Y,)))
    collector.add(TextDelta(1, "B", 1, (6,), (Y,), Finish("stop", "!")))
    collector.add(TextDelta(0, "a", 1, (5,), (X,), Finish("length")))
    collector.add(Done(USAGE))
    whole = collector.result()
    assert (whole.prompt, whole.usage) == (PROMPT, USAGE)
    gathered = [(c.index, c.text, c.token_ids, c.logprobs, c.finish) for c in whole.choices]
    assert gathered == [
        (0, "a", [6, 5], [Y, X], Finish("length")),
        (1, "bB", [5, 6], [X, Y], Finish("stop", "!")),
    ]


def test_events_that_end_early_are_no_answer() -> None:
    collector = Collector(REQUEST)
    collector.add(Started(prompt_tokens=1))
    collector.add(TextDelta(0, "a", 1))
    with pytest.raises(GenerationFailed):
        collector.result()
