from __future__ import annotations

from typing import Any

import pytest

from engines.api import GenerationRequest, SamplingParams, TextPrompt
from engines.native.request_params import truncated
from engines.native.types import Ready

READY = Ready("m", "llama", "cpu", "float32", "torch", 100, 8, 4, 9, 2, 64, 0, 0.0)  # 8 tokens of context
TOKENS = [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({}, TOKENS),
        ({"truncate_prompt_tokens": 2}, [5, 6]),
        ({"truncate_prompt_tokens": 2, "truncation_side": "right"}, [1, 2]),
        ({"truncate_prompt_tokens": 9}, TOKENS),
        ({"truncate_prompt_tokens": -1, "sampling": SamplingParams(max_tokens=4)}, [3, 4, 5, 6]),
        (
            {"truncate_prompt_tokens": -1, "sampling": SamplingParams(max_tokens=4), "truncation_side": "right"},
            [1, 2, 3, 4],
        ),
        ({"truncate_prompt_tokens": -1}, TOKENS),
        ({"truncate_prompt_tokens": -1, "sampling": SamplingParams(max_tokens=99)}, [6]),
    ],
)
def test_a_prompt_is_cut_at_the_side_and_to_the_length_that_are_asked_for(fields: dict[str, Any], left: list[int]):
    request = GenerationRequest(request_id="r", model="m", prompt=TextPrompt("x"), **fields)
    assert truncated(TOKENS, request, READY) == left
