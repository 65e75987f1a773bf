"""Log-probabilities are the model's own: what bias, penalties and temperature do to the draw does not show in them."""

from __future__ import annotations

import pytest
import torch

from engines.native.sampling import prompt_logprobs as module
from engines.native.sampling.ops import SamplingOps
from engines.native.sampling.prompt_logprobs import prompt_logprobs
from engines.native.types import TokenParams
from tests.engines.native.sampling.batches import Known, read_back, sample_batch


def logits(rows: int, vocab: int = 100) -> torch.Tensor:
    return torch.randn((rows, vocab), generator=torch.Generator().manual_seed(8)) * 2


@pytest.mark.parametrize("count", [0, 1, 5, 100, 500])
def test_chosen_and_top_tokens_come_from_the_raw_distribution(ops: SamplingOps, count: int) -> None:
    raw = logits(3)
    changed = TokenParams(
        max_tokens=9,
        temperature=1.8,
        seed=3,
        top_k=4,
        repetition_penalty=1.5,
        presence_penalty=2.0,
        logit_bias=((4, 90.0),),
        logprobs=count,
    )
    plain = TokenParams(max_tokens=9, temperature=0.0)
    sampled = read_back(sample_batch(ops, raw, [Known(plain), Known(changed, [1, 2], [4, 4]), Known(plain)]))
    assert list(sampled.logprobs) == [1]
    row, expected = sampled.logprobs[1], raw[1].log_softmax(0)
    assert row.token_id == sampled.token_ids[1] == 4
    assert row.logprob == pytest.approx(expected[4].item(), abs=1e-5)
    values, top_ids = expected.sort(descending=True)
    assert list(row.top_ids) == top_ids[:count].tolist()
    assert list(row.top_logprobs) == pytest.approx(values[:count].tolist(), abs=1e-5)


def test_rows_get_as_many_alternatives_as_each_asked_for(ops: SamplingOps) -> None:
    batch = [Known(TokenParams(max_tokens=9, logprobs=count)) for count in (2, -1, 0, 7)]
    sampled = read_back(sample_batch(ops, logits(4), batch))
    assert {i: len(row.top_ids) for i, row in sampled.logprobs.items()} == {0: 2, 2: 0, 3: 7}


def test_equally_likely_alternatives_come_by_rising_id(ops: SamplingOps) -> None:
    raw = torch.zeros((1, 6))
    raw[0, 4] = 1.0
    sampled = read_back(sample_batch(ops, raw, [Known(TokenParams(max_tokens=9, logprobs=6))]))
    assert sampled.logprobs[0].top_ids == (4, 0, 1, 2, 3, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prompt_logprobs_score_the_prompts_own_tokens(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 300)  # chunks of three tokens
    raw, targets = logits(8).to(dtype), torch.arange(8) * 11
    rows = prompt_logprobs(raw, targets, 3)
    expected = raw.float().log_softmax(1)
    assert [row.token_id for row in rows] == targets.tolist()
    for i, row in enumerate(rows):
        assert row.logprob == pytest.approx(expected[i, targets[i]].item(), abs=1e-5)
        assert list(row.top_ids) == expected[i].topk(3).indices.tolist()
        assert list(row.top_logprobs) == pytest.approx(expected[i].topk(3).values.tolist(), abs=1e-5)


def test_an_empty_chunk_has_no_prompt_logprobs() -> None:
    assert prompt_logprobs(logits(0), torch.empty(0, dtype=torch.int64), 3) == []
