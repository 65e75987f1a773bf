"""The serial roofline against figures worked out by other means."""

from __future__ import annotations

from typing import Any

import pytest

from engines.native.bench.figures import Limits, Load
from engines.native.bench.roofline import Roofline
from engines.native.models.hf_config import config_from_hf
from tests.engines.native.bench.tiny import FIELDS

H100 = Limits(copy_bytes_per_s=3.0e12, matmul_flops_per_s=0.78e15)
QWEN3_0_6B = FIELDS | {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
}
QWEN3_8B = QWEN3_0_6B | {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "tie_word_embeddings": False,
}
NUM_WEIGHTS = {"0.6B": 596e6, "8B": 8191e6}  # as the models' authors count them


def roofline(fields: dict[str, Any], num_weights: float, limits: Limits = H100) -> Roofline:
    config = config_from_hf(fields)
    kv_token_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 2
    table = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    return Roofline(config, int(2 * (num_weights - table)), kv_token_bytes, limits)


@pytest.mark.parametrize(
    ("name", "fields", "load", "tokens_per_s"),
    [
        ("0.6B", QWEN3_0_6B, Load(128, 256, 4, 1), 2453),
        ("0.6B", QWEN3_0_6B, Load(512, 256, 32, 8), 13065),
        ("0.6B", QWEN3_0_6B, Load(1024, 128, 256, 64), 17229),
        ("0.6B", QWEN3_0_6B, Load(512, 512, 512, 512), 31907),
        ("8B", QWEN3_8B, Load(128, 256, 4, 1), 197),
        ("8B", QWEN3_8B, Load(1024, 128, 256, 64), 3599),
        ("8B", QWEN3_8B, Load(1024, 256, 768, 256), 6706),
    ],
)
def test_limits_of_known_models_on_an_h100(name: str, fields: dict[str, Any], load: Load, tokens_per_s: float):
    """Figures of an earlier, independent calculation of the same roofline."""
    seconds = roofline(fields, NUM_WEIGHTS[name]).serial_s(load, max_batch=512)
    assert load.requests * load.output_tokens / seconds == pytest.approx(tokens_per_s, rel=0.03)


def test_attention_work_is_that_of_every_query_and_what_it_sees():
    windows = {"sliding_window": 10, "use_sliding_window": True, "max_window_layers": 1}
    for fields in (FIELDS, FIELDS | windows):
        line = roofline(fields, 1e5)
        config = line.config
        brute = sum(min(length, window or length) for window in config.sliding_windows for length in range(5, 31))
        products = 2 * 26 * (config.num_layers * (64 * 16 * 12 + 3 * 64 * 128) + 300 * 64)
        assert line.decode(5, 30).flops == products + 4 * config.num_heads * config.head_dim * brute
        assert line.decode(5, 30).moved_bytes == line.kv_token_bytes / config.num_layers * brute
    assert config.sliding_windows == (0, 10)


def test_a_load_of_single_tokens_is_its_prefills():
    line = roofline(QWEN3_8B, NUM_WEIGHTS["8B"])
    prefill_s = line.prefill(100).flops / H100.matmul_flops_per_s
    assert line.serial_s(Load(100, 1, 7, 2), max_batch=2) == pytest.approx(7 * prefill_s)


def test_what_an_engine_runs_at_once_bounds_the_limit():
    line = roofline(QWEN3_8B, NUM_WEIGHTS["8B"])
    load = Load(16, 64, 64, 64)
    assert line.serial_s(load, max_batch=8) > 4 * line.serial_s(load, max_batch=64)


def test_shares_are_work_over_time_over_limit():
    line = roofline(FIELDS, 1e5, Limits(copy_bytes_per_s=1e6, matmul_flops_per_s=1e9))
    shares = line.shares(line.weights(3), 2.0)
    assert (shares.bandwidth, shares.matrix) == (pytest.approx(0.3), 0.0)
