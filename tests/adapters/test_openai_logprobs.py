from __future__ import annotations

import math

from adapters.openai_logprobs import CompletionLogprobsBuilder, chat_logprobs, mean_logprob, prompt_logprobs
from engines.api import PromptDetails, TokenLogprob
from tests.adapters.driving import logprob


def test_impossible_tokens_have_a_finite_logprob() -> None:
    token = logprob(1, "a", -math.inf, (1, "a", -math.inf))
    assert chat_logprobs([token], 1)["content"][0]["logprob"] == -9999.0
    assert chat_logprobs([token], 1)["content"][0]["top_logprobs"][0]["logprob"] == -9999.0
    assert CompletionLogprobsBuilder(1).generated([token])["token_logprobs"] == [-9999.0]


def test_offsets_count_characters_though_tokens_split_them() -> None:
    euro = "€".encode()
    halves = [TokenLogprob(index, "\ufffd", part, -1.0) for index, part in enumerate((euro[:1], euro[1:]))]
    pieces = CompletionLogprobsBuilder(0).generated([*halves, logprob(5, "x", -1.0), logprob(6, "y", -1.0)])
    assert pieces["text_offset"] == [0, 1, 1, 2]


def test_offsets_fall_back_to_the_tokens_text_where_bytes_are_unknown() -> None:
    pieces = CompletionLogprobsBuilder(0).generated([TokenLogprob(1, "ab", b"", -1.0), logprob(2, "c", -1.0)])
    assert pieces["text_offset"] == [0, 2]


def test_the_chosen_token_is_told_though_it_is_not_among_the_likeliest() -> None:
    token = logprob(9, "z", -7.0, (1, "a", -0.5), (2, "b", -1.0), (3, "c", -2.0))
    pieces = CompletionLogprobsBuilder(2).generated([token])
    assert pieces["top_logprobs"] == [{"z": -7.0, "a": -0.5, "b": -1.0}]


def test_alternatives_of_one_text_keep_the_likeliest() -> None:
    token = logprob(1, "a", -0.5, (1, "a", -0.5), (2, "b", -1.0), (3, "b", -2.0))
    pieces = CompletionLogprobsBuilder(3).generated([token])
    assert pieces["top_logprobs"] == [{"a": -0.5, "b": -1.0}]


def test_a_prompt_tokens_rank_is_null_where_it_is_unknown() -> None:
    prompt = PromptDetails(text="ab", token_ids=(1, 2), logprobs=(None, logprob(2, "b", -5.0, (3, "c", -0.5))))
    assert prompt_logprobs(prompt, 1) == [
        None,
        {
            "2": {"logprob": -5.0, "rank": None, "decoded_token": "b"},
            "3": {"logprob": -0.5, "rank": 1, "decoded_token": "c"},
        },
    ]


def test_an_empty_choice_ranks_last() -> None:
    assert mean_logprob([]) < mean_logprob([logprob(1, "a", -9998.0)])
