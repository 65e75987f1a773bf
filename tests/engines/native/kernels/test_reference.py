"""The reference kernels mean what torch's own operators and the papers' formulas mean."""

import dataclasses

import pytest
import torch
from torch.nn import functional

from engines.native.kernels import reference
from tests.engines.native.kernels.ragged_batches import cached_batch


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_rms_norm_is_torchs() -> None:
    x, weight = torch.randn(7, 48), torch.randn(48)
    torch.testing.assert_close(reference.rms_norm(x, weight, 1e-5), functional.rms_norm(x, (48,), weight, 1e-5))


def test_rms_norm_of_bfloat16_takes_its_statistics_in_float32() -> None:
    x, weight = torch.full((1, 4096), 3.0, dtype=torch.bfloat16), torch.ones(4096, dtype=torch.bfloat16)
    assert torch.equal(reference.rms_norm(x, weight, 0.0), torch.ones_like(x))


def test_add_rms_norm_gives_the_sum_and_leaves_its_arguments() -> None:
    x, residual, weight = torch.randn(3, 16), torch.randn(3, 16), torch.randn(16)
    x_before, residual_before = x.clone(), residual.clone()
    normed, total = reference.add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, reference.rms_norm(x + residual, weight, 1e-6))
    assert torch.equal(x, x_before)
    assert torch.equal(residual, residual_before)


def test_silu_and_mul_gates_with_the_first_half() -> None:
    gate, up = torch.randn(5, 12), torch.randn(5, 12)
    torch.testing.assert_close(reference.silu_and_mul(torch.cat([gate, up], dim=1)), functional.silu(gate) * up)


def rotation_table(num_positions: int, rotary_dim: int) -> torch.Tensor:
    frequencies = 1e4 ** -(torch.arange(0, rotary_dim, 2) / rotary_dim)
    angles = torch.arange(num_positions)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def test_rotated_products_depend_on_the_distance_only() -> None:
    table = rotation_table(40, 32)
    q, k = torch.randn(1, 1, 32), torch.randn(1, 1, 32)

    def product(query_at: int, key_at: int) -> torch.Tensor:
        rotated = [reference.rope(x, torch.tensor([at]), table) for x, at in ((q, query_at), (k, key_at))]
        return (rotated[0] * rotated[1]).sum()

    torch.testing.assert_close(product(9, 4), product(35, 30))
    assert not torch.isclose(product(9, 4), product(9, 8))


def test_dimensions_past_the_rotary_ones_pass_through() -> None:
    heads = torch.randn(2, 3, 24)
    rotated = reference.rope(heads, torch.tensor([1, 5]), rotation_table(8, 16))
    assert torch.equal(rotated[..., 16:], heads[..., 16:])
    torch.testing.assert_close(rotated.norm(dim=-1), heads.norm(dim=-1))


def test_padding_tokens_are_not_cached() -> None:
    key_cache, value_cache = torch.zeros(2, 4, 1, 8), torch.zeros(2, 4, 1, 8)
    qkv, positions, slots = torch.randn(3, 4 * 8), torch.arange(3), torch.tensor([5, -1, 0])
    table = rotation_table(4, 8)
    q = reference.rope_and_cache(
        qkv, positions, table, None, None, 1e-6, key_cache, value_cache, slots, num_heads=2, num_kv_heads=1, head_dim=8
    )
    written = value_cache.view(8, 8)
    assert torch.equal(written[5], qkv[0, 24:])
    assert torch.equal(written[0], qkv[2, 24:])
    assert written.count_nonzero() == 16
    assert key_cache.count_nonzero() == 16
    torch.testing.assert_close(q, reference.rope(qkv[:, :16].view(3, 2, 8), positions, table))


@pytest.mark.parametrize("window", [0, 3], ids=["full", "window"])
def test_attention_is_torchs_on_the_gathered_sequence(window: int) -> None:
    batch = cached_batch([(1, 6), (4, 9)], block_size=4, head_dim=8)
    got = reference.paged_attention(batch.query, batch.key_cache, batch.value_cache, batch.metadata, 0.3, window)
    for sequence, (query_len, seq_len) in enumerate([(1, 6), (4, 9)]):
        alone = batch.only(sequence)
        blocks = alone.metadata.block_tables[0, : -(-seq_len // 4)].long()
        keys, values = (c[blocks].flatten(0, 1)[:seq_len] for c in (batch.key_cache, batch.value_cache))
        visible = torch.ones(seq_len, seq_len).tril().bool()
        if window:
            visible &= torch.ones(seq_len, seq_len).triu(1 - window).bool()
        expected = functional.scaled_dot_product_attention(
            alone.query.transpose(0, 1),
            keys.transpose(0, 1),
            values.transpose(0, 1),
            attn_mask=visible[-query_len:],
            scale=0.3,
            enable_gqa=True,
        )
        start = int(batch.metadata.query_start_loc[sequence])
        torch.testing.assert_close(got[start : start + query_len], expected.transpose(0, 1))


def test_sequences_without_tokens_give_zeros() -> None:
    batch = cached_batch([(1, 3)], head_dim=8)
    empty = dataclasses.replace(batch.metadata, seq_lens=torch.zeros(1, dtype=torch.int32))
    got = reference.paged_attention(batch.query, batch.key_cache, batch.value_cache, empty, 1.0)
    assert torch.equal(got, torch.zeros_like(batch.query))


def test_a_cache_in_fp8_holds_keys_and_values_to_its_precision_and_saturates() -> None:
    cos_sin = torch.cat([torch.ones(4, 4), torch.zeros(4, 4)], dim=1)  # no rotation
    qkv = torch.randn(2, 3 * 8)
    qkv[1, 9] = 1e6
    key_cache, value_cache = (torch.zeros(1, 4, 1, 8).to(torch.float8_e4m3fn) for _ in range(2))
    slots = torch.tensor([2, 1])
    reference.rope_and_cache(
        qkv, torch.arange(2), cos_sin, None, None, 1e-6, key_cache, value_cache, slots, 1, 1, 8
    )  # fmt: skip
    keys, values = key_cache.float()[0, slots, 0], value_cache.float()[0, slots, 0]
    torch.testing.assert_close(keys, qkv[:, 8:16].clamp(max=448.0), atol=2e-3, rtol=2**-4)
    torch.testing.assert_close(values, qkv[:, 16:], atol=2e-3, rtol=2**-4)
