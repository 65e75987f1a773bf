"""What detection scores, and that text without a mark is accused as seldom as promised."""

from __future__ import annotations

import math
import random

import pytest
import torch

from config.engines import NativeSettings
from engines.api import WatermarkParams
from engines.errors import InvalidRequest
from engines.native.types import GREEN_LIST, GREEN_LIST_SELF, GUMBEL, SYNTHID, Watermark
from engines.native.watermark import prf, torch_lists
from engines.native.watermark.detect import detect
from engines.native.watermark.resolve import PUBLIC_KEY, detector, requested, resolve

MARKS = [
    pytest.param(Watermark(GREEN_LIST, 5, 1, threshold=2**31), id="green-list"),
    pytest.param(Watermark(GREEN_LIST_SELF, 5, 3, threshold=2**30), id="self-hash"),
    pytest.param(Watermark(GUMBEL, 5, 4), id="gumbel"),
    pytest.param(Watermark(SYNTHID, 5, 4, depth=30), id="synthid"),
]


def keyed(mark: Watermark, key: int) -> Watermark:
    return Watermark(mark.scheme, key, mark.context_width, mark.threshold, mark.delta, mark.depth)


@pytest.mark.parametrize("mark", MARKS)
def test_false_positives_are_as_rare_as_nominal_also_in_loops(mark: Watermark) -> None:
    rng = random.Random(7)
    weights = [1 / (rank + 2.7) for rank in range(500)]
    num_texts, rate = 1500, 0.02
    positives = 0
    for i in range(num_texts):
        text = rng.choices(range(500), weights, k=24)
        text = text[:9] * 5 if i % 2 else text
        positives += detect(text, keyed(mark, rng.getrandbits(64))).p_value <= rate
    deviation = math.sqrt(num_texts * rate * (1 - rate))
    assert positives <= num_texts * rate + 4 * deviation
    assert positives >= num_texts * rate * 0.15  # the binomial's is a coarse test, but a test


@pytest.mark.parametrize("mark", MARKS)
def test_a_repeated_passage_is_scored_once(mark: Watermark) -> None:
    passage = [3, 1, 4, 1, 5, 9, 2, 6]
    twice, often = detect(passage * 2, mark), detect(passage * 20, mark)
    assert (twice.p_value, twice.num_tokens_scored) == (often.p_value, often.num_tokens_scored)
    assert twice.num_tokens_scored <= len(passage) + mark.context_width
    assert sum(m is not None for m in often.marks) == often.num_tokens_scored


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("length", [0, 1, 2])
def test_too_short_a_text_proves_nothing(mark: Watermark, length: int) -> None:
    found = detect([7, 8][:length], mark)
    assert found.p_value >= 0.25
    assert len(found.marks) == length


def test_bits_are_fair_and_change_with_all_they_depend_on() -> None:
    def bits(key: int = 1, context: tuple[int, ...] = (1, 2), domain: int = prf.GUMBEL_DOMAIN, token: int = 3) -> int:
        return prf.token_bits(prf.context_key(key, context), domain, token)

    others = [bits(key=2), bits(key=2**40), bits(context=(2, 1)), bits(context=(1,)), bits(domain=9), bits(token=4)]
    assert len({bits(), *others}) == 7
    for bit in range(32):
        ones = sum(bits(token=token) >> bit & 1 for token in range(4000))
        assert abs(ones - 2000) < 5 * math.sqrt(1000)


def test_tgi_lists_are_torchs_permutations() -> None:
    for vocab_size, num_previous in ((7, 60), (50, 40), (2000, 6)):
        for previous in range(1, num_previous):
            generator = torch.Generator().manual_seed(15485863 * previous)
            green = set(torch.randperm(vocab_size, generator=generator)[: vocab_size // 2].tolist())
            for token_id in range(0, vocab_size, 1 + vocab_size // 60):
                got = torch_lists.is_green(15485863, previous, token_id, vocab_size, vocab_size // 2)
                assert got == (token_id in green)


def test_text_marked_as_transformers_marks_it_is_found_by_its_lists_and_no_others() -> None:
    from transformers.generation.logits_process import WatermarkLogitsProcessor

    processor = WatermarkLogitsProcessor(vocab_size=600, device="cpu", greenlist_ratio=0.5, bias=4.0)
    text = [5]
    generator = torch.Generator().manual_seed(3)
    for _ in range(60):
        scores = processor(torch.tensor([text]), torch.randn((1, 600), generator=generator))
        text.append(int(torch.multinomial(scores.softmax(1)[0], 1, generator=generator)))
    section = NativeSettings()
    asked = WatermarkParams(scheme="green_list", lists="tgi")
    assert detector(asked, section, 600).run(text).p_value < 1e-8
    assert detector(WatermarkParams(scheme="green_list"), section, 600).run(text).p_value > 1e-3
    for refused, field in (
        (WatermarkParams(scheme="gumbel", lists="tgi"), "lists"),
        (WatermarkParams(key="secret", lists="tgi"), "key"),
        (WatermarkParams(self_hash=True, lists="tgi"), "self_hash"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            detector(refused, section, 600)
        assert caught.value.field == field


def test_a_request_overrides_the_server_and_the_server_the_schemes() -> None:
    section = NativeSettings.model_validate(
        {"watermark": True, "watermark_scheme": "synthid", "watermark_key": "s", "watermark_context_width": 3}
    )
    assert requested(None, section) == Watermark(
        SYNTHID, prf.secret_to_key("s"), 3, threshold=2**31, delta=2.0, depth=30
    )
    assert requested(False, section) is None
    own = requested(WatermarkParams(scheme="green_list", key="k", gamma=0.25, self_hash=True), section)
    assert own == Watermark(GREEN_LIST_SELF, prf.secret_to_key("k"), 1, threshold=2**30, delta=2.0)
    assert requested(None, NativeSettings()) is None
    plain = requested(True, NativeSettings())
    assert plain == Watermark(GREEN_LIST, prf.secret_to_key(PUBLIC_KEY), 1, threshold=2**31, delta=2.0)
    with pytest.raises(InvalidRequest, match=r"watermark\.depth"):
        requested(WatermarkParams(scheme="gumbel", depth=3), section)


def test_no_secret_is_shown() -> None:
    section = NativeSettings.model_validate({"watermark_key": "hush"})
    mark = resolve(WatermarkParams(key="whisper"), section)
    shown = f"{section!r} {section.model_dump_json()} {mark!r} {WatermarkParams(key='whisper')!r}"
    assert "hush" not in shown
    assert "whisper" not in shown
    assert str(mark.key) not in shown
